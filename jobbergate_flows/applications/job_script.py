"""The result of rendering an application: a job script with its supporting files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer


def _frozen(files: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(files))


class JobScript(BaseModel):
    """A job script, ready to be given to sbatch.

    `name` is the job's name as the user sees it. `text` is the script itself. `files` are the supporting files:
    a path relative to the run's directory -> text. `result_files` are the patterns of the files that count as the
    job's results (as in a `.gitignore`); without any, all that the job leaves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    text: str
    files: Annotated[Mapping[str, str], AfterValidator(_frozen), PlainSerializer(lambda files: dict(files))] = Field(
        default_factory=dict, validate_default=True
    )

    result_files: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest over the script and its supporting files; the name is no part of it."""
        digest = hashlib.sha256()
        for path, text in [("", self.text), *sorted(self.files.items())]:
            for part in (path.encode(), text.encode()):
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
        return f"sha256:{digest.hexdigest()}"

    def model_post_init(self, _context: Any, /) -> None:
        for path in self.files:
            if path.startswith("/") or ".." in path.split("/") or not path:
                raise ValueError(f"supporting file {path!r} lies outside the run's directory")
