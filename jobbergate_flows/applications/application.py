"""An application: its files, by their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2

from jobbergate_flows.applications.config import FILE, ApplicationConfig, find_templates, parse_config
from jobbergate_flows.applications.errors import DigestMismatch, LoadingError, RenderingError
from jobbergate_flows.applications.isolation import Limits, run_isolated
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.applications.sources import pack, read_folder, read_git, unpack
from jobbergate_flows.slurm.directives import inject_sbatch_params, parse_directives

WORKFLOW = "jobbergate.py"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, for whoever asks it.

    `kind` is its type (`Text`, `Integer`, `List`, ...); `choices` are labels and values.
    """

    kind: str
    variable: str
    message: str
    default: Any
    choices: tuple[tuple[str, Any], ...] = ()
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class ApplicationInterface:
    """What an application asks for.

    Args:
        form: The JSON Schema of the answers.
        complete: Whether every branch was followed; if not, the interview may ask for more.
        directives: The parameters of the job script template's `#SBATCH` lines, as written.
    """

    form: Mapping[str, Any]
    complete: bool
    directives: tuple[str, ...]


@dataclass(frozen=True)
class Application:
    """An application, content-addressed: two with the same files have the same digest.

    Args:
        name: Of the flow and, without a job name, of the job.
        files: Path -> content.
        source: Where it was loaded from.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)
    source: str
    config: ApplicationConfig = field(repr=False)
    entrypoint: str
    supporting: Mapping[str, str]

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, name: str, source: str) -> Application:
        """An application of files; see `load` for what is checked."""
        for needed in (FILE, WORKFLOW):
            if needed not in files:
                raise LoadingError(f"there is no {needed}", where=source, hint=f"an application needs a {needed}")
        if not any(path.endswith((".j2", ".jinja2")) for path in files):
            raise LoadingError("there is no template", where=source, hint="add the job script as templates/job.sh.j2")
        text = _text(files, FILE)
        config = parse_config(text)
        entrypoint, supporting = find_templates(config, files, text)
        for template in (entrypoint, *supporting):
            _check_template(template, _text(files, template))
        workflow = _text(files, WORKFLOW)
        try:
            compile(workflow, WORKFLOW, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            raise LoadingError(
                f"does not load: {getattr(error, 'msg', None) or error}",
                where=f"{WORKFLOW}:{line}" if line else WORKFLOW,
                hint="mend the Python",
            ) from error
        return cls(
            name=_flow_name(name),
            files=MappingProxyType(dict(files)),
            source=source,
            config=config,
            entrypoint=entrypoint,
            supporting=MappingProxyType(supporting),
        )

    @classmethod
    def from_path(cls, path: str | Path, *, name: str | None = None) -> Application:
        """The application of a folder."""
        folder = Path(path).expanduser()
        files = read_folder(folder)
        return cls.from_files(files, name=name or folder.absolute().name, source=str(path))

    @classmethod
    def from_archive(cls, data: bytes, *, name: str, source: str = "archive", digest: str | None = None) -> Application:
        """The application of an archive.

        Raises:
            DigestMismatch: Its digest is not `digest`.
        """
        application = cls.from_files(unpack(data, source), name=name, source=source)
        if digest is not None and application.digest != digest:
            raise DigestMismatch(
                f"the application has digest {application.digest}, not {digest}",
                where=source,
                hint="deploy the application again",
            )
        return application

    @classmethod
    def load(cls, reference: str | Path) -> Application:
        """The application of a folder or of `git+URL@REF#FOLDER`.

        Raises:
            LoadingError: with the file, the line and the mend: a missing folder or file, bad YAML, unknown or wrong
                keys, bad Python, a template that does not parse or is not there, two entrypoints, a file outside of
                the application.
            SourceError: git cannot fetch it.
        """
        if isinstance(reference, str) and reference.startswith("git+"):
            files, source, name = read_git(reference)
            return cls.from_files(files, name=name, source=source)
        return cls.from_path(reference)

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the hex digest over paths and contents."""
        digest = hashlib.sha256()
        for path in sorted(self.files):
            for part in (path.encode(), self.files[path]):
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
        return f"sha256:{digest.hexdigest()}"

    @property
    def description(self) -> str:
        """The README's text; empty without one."""
        for name in ("README.md", "README.rst", "README.txt", "README"):
            if name in self.files:
                return self.files[name].decode(errors="replace").strip()
        return ""

    def archive(self) -> bytes:
        """The files as tar.gz, the same bytes for the same files."""
        return pack(self.files)

    def describe(self, *, limits: Limits | None = None) -> ApplicationInterface:
        """What the application asks for, found by following its branches in a separate process.

        Raises:
            ApplicationError: Its code fails, or takes more than it may.
        """
        found = run_isolated({"do": "describe", **self._request()}, self.files, limits=limits)
        directives = parse_directives(self.files[self.entrypoint].decode(errors="replace")).raw
        plain = tuple(line for line in directives if "{" not in line)
        return ApplicationInterface(MappingProxyType(found["form"]), found["complete"], plain)

    def render(
        self,
        answers: Mapping[str, Any] | None = None,
        *,
        job_name: str | None = None,
        sbatch: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> JobScript:
        """Replay the interview with the answers, and render the job script and its supporting files.

        Args:
            answers: Variable -> answer; what is missing takes its default.
            job_name: The script's name; otherwise the application's `job_script_name`, or its own name.
            sbatch: Parameters to inject as `#SBATCH` lines.

        Raises:
            MissingAnswer, UnknownAnswer, BadAnswer: naming the question.
            RenderingError: naming the template and the line.
            LimitExceeded: The application took more than it may.
        """
        request = {
            "do": "render",
            **self._request(),
            "answers": dict(answers or {}),
            "entrypoint": self.entrypoint,
            "supporting": dict(self.supporting),
        }
        done = run_isolated(request, self.files, limits=limits)
        if not done["text"].startswith("#!"):
            raise RenderingError(
                "the rendered script does not begin with #!",
                where=f"{self.entrypoint}:1",
                hint="begin the template with #!/bin/bash: sbatch wants it",
            )
        return JobScript(
            name=job_name or done["name"] or self.name,
            text=inject_sbatch_params(done["text"], sbatch),
            files=done["files"],
        )

    def interview(
        self,
        answers: Mapping[str, Any] | None = None,
        *,
        ask: Callable[[Question, str | None], Any],
        fast: bool = False,
        limits: Limits | None = None,
    ) -> dict[str, Any]:
        """Ask the questions that `answers` leaves open.

        Args:
            ask: Asks one question; gets the complaint about the answer before. None stands for the default.
            fast: Take defaults without asking.

        Returns:
            All answers given, ready for `render`.
        """

        def put(described: dict[str, Any], complaint: str | None) -> Any:
            question = Question(
                kind=described["type"],
                variable=described["variable"],
                message=described["message"],
                default=described["default"],
                choices=tuple((label, value) for label, value in described["choices"] or ()),
                minimum=described["minimum"],
                maximum=described["maximum"],
            )
            return ask(question, complaint)

        request = {"do": "interview", **self._request(), "answers": dict(answers or {}), "fast": fast}
        given: dict[str, Any] = run_isolated(request, self.files, limits=limits, ask=put)["answers"]
        return given

    def _request(self) -> dict[str, Any]:
        return {"config": self.config.plain()}


load_application = Application.load


def _text(files: Mapping[str, bytes], path: str) -> str:
    try:
        return files[path].decode()
    except UnicodeDecodeError as error:
        raise LoadingError("the file is not UTF-8 text", where=path, hint="save it as UTF-8") from error


def _check_template(path: str, text: str) -> None:
    try:
        jinja2.Environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise LoadingError(
            f"the template does not parse: {error.message}", where=f"{path}:{error.lineno}", hint="mend the template"
        ) from error


def _flow_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "application"
