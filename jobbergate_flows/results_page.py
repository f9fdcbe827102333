"""The page of a job's result files: their list, and the start of texts, tables and pictures. No Prefect in here."""

from __future__ import annotations

import base64
import csv
import io
import posixpath
from collections.abc import Collection
from dataclasses import dataclass

from jobbergate_flows.markdown import code, code_span, details, table, text, time_of
from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.errors import ClusterUnreachable, FileRefused
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.results import ResultFile, Results, read_start
from jobbergate_flows.slurm.units import size_text

_PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
_LISTED = 500
_LOOKED_INTO = 200
_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class PreviewLimits:
    """How much is shown.

    Args:
        files: Of how many files.
        text: Bytes of a text or a table.
        rows, columns: Of a table.
        picture, pictures: Bytes of one picture, and of all together. A larger one is not shown.
    """

    files: int = 12
    text: int = 8 << 10
    rows: int = 20
    columns: int = 12
    picture: int = 256 << 10
    pictures: int = 1 << 20


async def results_markdown(
    cluster: Cluster,
    job: SlurmJob,
    results: Results,
    *,
    without: Collection[str] = (),
    limits: PreviewLimits | None = None,
) -> str:
    """The page as markdown.

    Args:
        without: Paths relative to the job's directory whose content is shown elsewhere (its output).
    """
    files = results.files
    total = size_text(sum(file.size for file in files))
    title = f"# {len(files)} result {'file' if len(files) == 1 else 'files'}, {total}"
    parts = [title, f"On {text(job.cluster)}, in {code_span(job.directory)}."]
    if files:
        rows = [
            [file.path, size_text(file.size), time_of(file.modified), file.digest or ""] for file in files[:_LISTED]
        ]
        parts.append(table(["File", "Size", "Changed", "Checksum"], rows))
    if results.more or len(files) > _LISTED:
        parts.append("There are more files than these.")
    parts += await _previews(cluster, job, results, without, limits or PreviewLimits())
    if files:
        parts.append("To bring them here:\n\n" + code(f"jobbergate-flows job fetch {job.job_id}", "bash"))
    # Files may have names that are no text.
    return "\n\n".join(parts).encode(errors="replace").decode()


async def _previews(
    cluster: Cluster, job: SlurmJob, results: Results, without: Collection[str], limits: PreviewLimits
) -> list[str]:
    shown: list[str] = []
    left = limits.pictures
    # Of a job that has left thousands of binary files not each is opened.
    for file in results.files[:_LOOKED_INTO]:
        if len(shown) >= limits.files:
            break
        if file.size == 0 or file.path in without:
            continue
        suffix = posixpath.splitext(file.path)[1].lower()
        try:
            if suffix in _PICTURES:
                if file.size > min(limits.picture, left):
                    continue
                content = await read_start(cluster, job, file, file.size)
                left -= len(content)
                shown.append(_picture(file, content, _PICTURES[suffix]))
            else:
                content = await read_start(cluster, job, file, limits.text)
                if (readable := _as_text(content)) is not None:
                    shown.append(_text(file, readable, len(content), _TABLES.get(suffix), limits))
        except (FileRefused, ClusterUnreachable):
            # The list says that it is there; its content is the user's to look at.
            continue
    return shown


def _picture(file: ResultFile, content: bytes, kind: str) -> str:
    # In an <img>, an SVG runs no scripts and loads nothing.
    encoded = base64.b64encode(content).decode()
    return details(
        file.path, f"![{posixpath.basename(file.path).translate(_PLAIN)}](data:{kind};base64,{encoded})", open_=True
    )


def _text(file: ResultFile, content: str, read: int, delimiter: str | None, limits: PreviewLimits) -> str:
    if read < file.size:
        # Not half a line.
        content = content.rpartition("\n")[0] or content
    if delimiter is not None and (rows := _rows(content, delimiter)):
        head, *body = rows
        block = table(
            [cell[:100] for cell in head[: limits.columns]],
            [[cell[:100] for cell in row[: limits.columns]] for row in body[: limits.rows]],
        )
        cut = len(body) > limits.rows or len(head) > limits.columns or read < file.size
    else:
        block, cut = code(content), read < file.size
    return details(file.path, block + ("\n\nThis is only its start." if cut else ""))


def _rows(content: str, delimiter: str) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(content), delimiter=delimiter, strict=True) if row]
    except csv.Error:
        return []
    return rows if len({len(row) for row in rows}) == 1 and len(rows) > 1 else []


def _as_text(content: bytes) -> str | None:
    try:
        decoded = content.decode()
    except UnicodeDecodeError as error:
        # A character may be cut at the end of what was read.
        if error.start < len(content) - 3:
            return None
        decoded = content[: error.start].decode()
    printable = all(character.isprintable() or character in "\n\r\t\f" for character in decoded)
    return decoded if printable and decoded.strip() else None


_PLAIN = {ord(character): "_" for character in "[]()!`<>\\|"}
