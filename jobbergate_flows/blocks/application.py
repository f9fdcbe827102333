"""The block that stores an application, so that a worker needs no shared folder."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self, cast

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from jobbergate_flows.applications import Application
from jobbergate_flows.errors import JobbergateFlowsError

MAX_EMBEDDED_BYTES = 512 * 1024
"""Archives up to this size are stored in the block itself; larger ones are loaded from their source."""


# Not the event loop's own threads, which are few: a source that does not answer would hold up everything.
_fetching = ThreadPoolExecutor(4, thread_name_prefix="application")


class ApplicationNotStored(JobbergateFlowsError):
    """The server has no block for an application's pin, or what it stores is another application."""


class StoredApplication(Block):
    """An application, by its content.

    Example:
        Load a stored application and render it:
        ```python
        from jobbergate_flows.blocks import StoredApplication

        application = StoredApplication.load("BLOCK_NAME").application()
        script = application.render({"steps": 10})
        ```
    """

    _block_type_name: ClassVar[str | None] = "Slurm Application"
    _block_type_slug: ClassVar[str | None] = "slurm-application"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://upload.wikimedia.org/wikipedia/commons/3/3a/Slurm_logo.svg")
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://slurm.schedmd.com/sbatch.html")
    _description: ClassVar[str | None] = "Hold a Slurm application with its questions and templates."

    name: str = Field(title="Name", description="The application's name.")
    digest: str = Field(title="Digest", description="`sha256:` and the hex digest over the application's files.")
    source: str = Field(title="Source", description="Where it was loaded from: a path or a git reference.")
    archive: str | None = Field(
        default=None,
        title="Archive",
        description="The files as tar.gz in base64; empty for a large application, which is loaded from its source.",
    )

    @classmethod
    def of(cls, application: Application) -> Self:
        """The block of an application.

        Raises:
            ApplicationNotStored: It is larger than `MAX_EMBEDDED_BYTES` and was not loaded from git, so that no
                other host could load it.
        """
        archive = application.archive()
        embedded = len(archive) <= MAX_EMBEDDED_BYTES
        if not embedded and not application.source.startswith("git+"):
            raise ApplicationNotStored(
                f"the application's archive has {len(archive)} bytes, more than {MAX_EMBEDDED_BYTES}",
                where=application.source,
                hint="load a large application from git (git+URL@REF#FOLDER), so that workers can load it as well",
            )
        return cls(
            name=application.name,
            digest=application.digest,
            source=application.source,
            archive=base64.b64encode(archive).decode() if embedded else None,
        )

    def application(self, *, remote: bool = False) -> Application:
        """The application, checked against the digest.

        Args:
            remote: Fetch a large one over https or ssh only: whoever can write blocks names its source.

        Raises:
            DigestMismatch: The content is not what the digest says.
            SourceError: A large application's source cannot be reached, or is not to be.
        """
        if self.archive is not None:
            return Application.from_archive(
                base64.b64decode(self.archive), name=self.name, source=self.source, digest=self.digest
            )
        application = Application.load(self.source, remote=remote)
        if application.digest != self.digest:
            raise ApplicationNotStored(
                f"the source now holds {application.digest}, not {self.digest}",
                where=self.source,
                hint="deploy the application again",
            )
        return application


def pin(application: Application) -> str:
    """`<name>@sha256:<hex>`: the constant by which a deployment names its application."""
    return f"{application.name}@{application.digest}"


def pin_of_form(schema: Mapping[str, Any] | None) -> str:
    """The pin in a deployment's form; empty where there is none.

    `prefect deploy` and `flow.deploy` put it there, and not into the parameters.

    Args:
        schema: The deployment's `parameter_openapi_schema`, of which any client may have made anything.
    """
    found: Any = schema
    for name in ("properties", "application", "const"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


def block_name(pinned: str) -> str:
    """The block document's name for a pin: the name and the first 16 digits of the digest.

    Raises:
        ApplicationNotStored: The text is no pin.
    """
    match = re.fullmatch(r"(?P<name>[^@\s]+)@sha256:(?P<digest>[0-9a-f]{64})", pinned)
    if match is None:
        raise ApplicationNotStored(
            f"{pinned!r} is no application pin",
            hint="a pin is NAME@sha256:DIGEST, as `jobbergate-flows app deploy --json` prints it",
        )
    name = re.sub(r"[^a-z0-9]+", "-", match["name"].lower()).strip("-")
    return f"{name[:60]}-{match['digest'][:16]}"


async def astore_application(application: Application) -> str:
    """Store an application as a block, once for each content, and return its pin."""
    block = StoredApplication.of(application)
    name = block_name(pin(application))
    try:
        stored = cast(StoredApplication, await StoredApplication.aload(name))
    except ValueError:
        await block.asave(name)
    else:
        if stored.digest != block.digest:
            await block.asave(name, overwrite=True)
    return pin(application)


async def aload_application(pinned: str, *, remote: bool = False) -> Application:
    """Load the application of a pin, in a thread.

    Args:
        remote: See `StoredApplication.application`.

    Raises:
        ApplicationNotStored: The server has none, or another digest under that name.
    """
    name = block_name(pinned)
    try:
        stored = cast(StoredApplication, await StoredApplication.aload(name))
    except ValueError as error:
        raise ApplicationNotStored(
            f"the server has no application {pinned}",
            where=f"block slug slurm-application/{name}",
            hint="deploy the application again: its block was removed",
        ) from error
    if not pinned.endswith(f"@{stored.digest}"):
        raise ApplicationNotStored(
            f"the stored application has digest {stored.digest}, the run asks for {pinned}",
            where=f"block slug slurm-application/{name}",
            hint="deploy the application again: its block was changed",
        )
    return await asyncio.get_running_loop().run_in_executor(_fetching, lambda: stored.application(remote=remote))
