"""What a job has left: the files of its directory that count as results, and bringing them.

All of it goes through the cluster's own door, so with the rights of the job's user.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from jobbergate_flows.slurm.cluster import Cluster, FileEntry
from jobbergate_flows.slurm.errors import FileRefused
from jobbergate_flows.slurm.jobs import SlurmJob

LISTED = 10_000
"""So many files of a directory are looked at."""
DIGEST_BELOW = 16 << 20
"""Files of fewer bytes get a checksum."""
DIGESTED = 1 << 30
"""So many bytes are read for checksums in all: a run does not wait for those of ten thousand files."""
_PIECE = 1 << 20
_CLOCKS_DIFFER = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file that a job has left.

    Args:
        path: Relative to the job's directory.
        size: In bytes.
        digest: `sha256:` and the hex digest; None for a large file, one of too many, and one that could not be read.
    """

    path: str
    size: int
    modified: datetime
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The result files, by path, and whether there may be more than were looked at."""

    files: tuple[ResultFile, ...]
    more: bool = False


def select(
    entries: Sequence[FileEntry],
    patterns: Sequence[str],
    *,
    written: Collection[str] = (),
    since: datetime | None = None,
) -> list[FileEntry]:
    """The files that count as results. Pure.

    Args:
        patterns: As in a `.gitignore`: `*.csv` is in any folder, `/plots/` is the folder beside the script, a later
            `!tmp*` takes away. Without any, every file counts that was not `written` by us.
        written: The paths of the job script and its supporting files.
        since: Without patterns only what changed after this; for a directory that was there before the job.

    Raises:
        FileRefused: A pattern is none.
    """
    if not patterns:
        return [
            entry
            for entry in entries
            if entry.path not in written
            and not entry.path.startswith(".")
            and (since is None or entry.modified >= since - _CLOCKS_DIFFER)
        ]
    matches = _matcher(patterns)
    return [entry for entry in entries if matches(entry.path)]


async def find_results(
    cluster: Cluster,
    job: SlurmJob,
    patterns: Sequence[str] = (),
    *,
    written: Collection[str] = (),
    in_place: bool = False,
    digest_below: int = DIGEST_BELOW,
) -> Results:
    """A job's result files, with checksums of those that are small.

    Args:
        patterns, written: As for `select`.
        in_place: The job ran in a directory that was there before it.
        digest_below: In bytes; 0 for no checksums. Past `DIGESTED` bytes there are no more.

    Raises:
        FileRefused, ClusterUnreachable
    """
    left = DIGESTED
    entries = await cluster.list_files(job.directory, limit=LISTED)
    since = job.submitted_at if in_place else None
    files = []
    for entry in select(entries, patterns, written=written, since=since):
        found = ResultFile(entry.path, entry.size, entry.modified)
        if entry.size < min(digest_below, left):
            left -= entry.size
            with contextlib.suppress(FileRefused):
                found = replace(found, digest=await _digest(cluster, f"{job.directory}/{entry.path}"))
        files.append(found)
    return Results(tuple(files), more=len(entries) >= LISTED)


async def read_start(cluster: Cluster, job: SlurmJob, file: ResultFile, limit: int) -> bytes:
    """The first bytes of a result file, at most `limit`; fewer where it has shrunk or is gone."""
    content = bytearray()
    while len(content) < limit:
        chunk = await cluster.read(
            f"{job.directory}/{file.path}", offset=len(content), limit=min(_PIECE, limit - len(content))
        )
        if chunk is None or not chunk.data:
            break
        content += chunk.data
    return bytes(content)


async def fetch(
    cluster: Cluster, job: SlurmJob, files: Sequence[ResultFile], to: Path, *, overwrite: bool = False
) -> list[Path]:
    """Bring result files into a folder of this machine, with their times; each appears whole or not at all.

    A file that is there already with the same content is left as it is.

    Args:
        to: Made where it is missing.
        overwrite: Replace what is there with another content.

    Returns:
        The paths of all files, in the order of `files`.

    Raises:
        FileRefused: A file of that name is there, or one of the job's is gone or changes while it is read.
        ClusterUnreachable
    """
    paths = [to / _inside(file.path) for file in files]
    for path in paths:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise FileRefused("there is something else than a file", where=str(path), hint="name another folder")
    for file, path in zip(files, paths, strict=True):
        await _fetch_one(cluster, f"{job.directory}/{file.path}", file, path, overwrite)
    return paths


async def _fetch_one(cluster: Cluster, source: str, file: ResultFile, path: Path, overwrite: bool) -> None:
    try:
        with _arriving(path) as (temporary, target):
            digest, offset = hashlib.sha256(), 0
            while (chunk := await cluster.read(source, offset=offset, limit=_PIECE)) is not None and chunk.data:
                target.write(chunk.data)
                digest.update(chunk.data)
                offset += len(chunk.data)
            if chunk is None or offset != chunk.size:
                raise FileRefused(
                    "the file is gone, or was changed while it was read", where=source, hint="fetch it again"
                )
            target.close()
            await asyncio.to_thread(_settle, temporary, path, digest.digest(), file.modified, overwrite)
    except OSError as error:
        raise FileRefused(f"the file cannot be written: {error.strerror or error}", where=str(path)) from error


def _settle(temporary: str, path: Path, digest: bytes, modified: datetime, overwrite: bool) -> None:
    if path.exists() and _digest_of(path) == digest:
        return
    if path.exists() and not overwrite:
        raise FileRefused(
            "a file of that name, with another content, is there already",
            where=str(path),
            hint="name another folder, or let it be overwritten",
        )
    os.utime(temporary, (modified.timestamp(), modified.timestamp()))
    os.replace(temporary, path)


@contextlib.contextmanager
def _arriving(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as target:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(descriptor, 0o666 & ~mask)
            yield temporary, target
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    # Imported only where something is matched.
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(patterns).match_file
    except ValueError as error:
        raise FileRefused(
            f"this is no pattern of files: {error}", where=", ".join(patterns), hint="write them as in a .gitignore"
        ) from error


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuse patterns that are none.

    Raises:
        FileRefused
    """
    _matcher(patterns)


def _inside(path: str) -> str:
    # The listing is the user's word.
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise FileRefused("the file lies outside of the job's directory", where=path)
    return path


async def _digest(cluster: Cluster, path: str) -> str | None:
    digest, offset = hashlib.sha256(), 0
    while (chunk := await cluster.read(path, offset=offset, limit=_PIECE)) is not None and chunk.data:
        digest.update(chunk.data)
        offset += len(chunk.data)
    return None if chunk is None else f"sha256:{digest.hexdigest()}"


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
