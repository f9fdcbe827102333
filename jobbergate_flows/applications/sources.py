"""Where applications come from: a folder, a git repository, an archive."""

from __future__ import annotations

import gzip
import io
import os
import re
import signal
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from jobbergate_flows.applications.errors import LoadingError, SourceError

MAX_APPLICATION_BYTES = 5 << 20
MAX_FILES = 1000
GIT_SECONDS = 120

_TOO_LARGE = f"the application is larger than {MAX_APPLICATION_BYTES >> 20} MiB or {MAX_FILES} files"
# Each file has a header, may have a longer one for its name, and is filled up to a block.
_MAX_RAW_BYTES = MAX_APPLICATION_BYTES + MAX_FILES * 4096
_REMOTE = re.compile(r"(?:https://|ssh://(?:\w[\w.-]*@)?)[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?/", re.ASCII)
_SKIPPED = {".git", ".hg", ".svn", "__pycache__", ".ipynb_checkpoints", ".venv", ".mypy_cache", ".ruff_cache"}
_GIT_ENVIRONMENT = (
    "PATH", "HOME", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
    "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GitReference:
    """`git+<url>@<ref>#<subdirectory>`; without a ref it is the repository's own default."""

    url: str
    ref: str | None
    subdirectory: str

    @classmethod
    def parse(cls, text: str) -> GitReference:
        """Read a reference.

        Raises:
            SourceError: It is none, or names a transport that is not allowed, or holds a password.
        """
        url, _, folder = text.removeprefix("git+").partition("#")
        match = re.match(
            r"(?:(?:https?|ssh|git|file)://[^/]*/|(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9][\w.-]*:(?!//|:))", url
        )
        if not text.startswith("git+") or match is None:
            raise SourceError(
                "this is no reference to a git repository", where=text, hint="write git+https://HOST/PATH@REF#FOLDER"
            )
        if re.search(r"//[^/@]*:[^/@]*@", match[0]):
            raise SourceError(
                "the URL holds a password, which would be stored with the application",
                where=re.sub(r"//[^/]*@", "//***@", text),
                hint="leave it out, and give git a credential helper or an SSH key",
            )
        # What comes before the path may hold an @ of its own: user@host.
        path, at, ref = url[match.end() :].rpartition("@")
        if not at:
            path, ref = ref, ""
        else:
            url = match[0] + path
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*", ref):
                raise SourceError(f"{ref!r} is no branch, tag or commit", where=text, hint="write git+URL@REF#FOLDER")
        folder = str(PurePosixPath(folder or "."))
        if folder.startswith("/") or ".." in PurePosixPath(folder).parts:
            raise SourceError(f"the folder {folder!r} lies outside the repository", where=text)
        return cls(url, ref or None, folder)


def read_folder(folder: Path, *, where: str | None = None) -> dict[str, bytes]:
    """The files of an application's folder, by their paths in it.

    Version control's and Python's own files are no part of it.

    Args:
        folder: The folder.
        where: How errors name it; otherwise its path.

    Raises:
        LoadingError: There is no such folder, it holds a symbolic link, or too much, or cannot be read.
    """
    where = where or str(folder)
    if not folder.is_dir():
        what = "this is no folder" if folder.exists() else "there is no such folder"
        raise LoadingError(what, where=where, hint="name the folder that holds jobbergate.yaml")
    files: dict[str, bytes] = {}
    total = 0
    try:
        for path in _walk(folder):
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file():
                raise LoadingError(
                    "it is no regular file, and an application holds only those",
                    where=relative,
                    hint="put a copy of the file there instead of the link",
                )
            if not relative.isprintable():
                raise LoadingError(f"the file's name {relative!r} is none for an application", where=where)
            total += path.stat().st_size
            if total > MAX_APPLICATION_BYTES or len(files) >= MAX_FILES:
                raise LoadingError(
                    _TOO_LARGE, where=where, hint="leave data out of it, and name it by its path instead"
                )
            files[relative] = path.read_bytes()
    except OSError as error:
        raise LoadingError(f"it cannot be read: {error.strerror}", where=str(error.filename or where)) from error
    return files


def read_git(text: str, *, remote: bool = False) -> tuple[dict[str, bytes], str, str]:
    """The files of a git reference, the same reference with the commit as its ref, and the application's name.

    Args:
        remote: Only from another host, over https or ssh, and with nobody's name but ssh's in the URL.

    Raises:
        SourceError: git cannot fetch it, or is not to.
        LoadingError: as for `read_folder`.
    """
    reference = GitReference.parse(text)
    if remote and not _REMOTE.match(reference.url):
        raise SourceError(
            "this is not fetched here: only git+https:// and git+ssh:// are",
            where=re.sub(r"//[^/@]*@", "//***@", text),
            hint="deploy the application from git+https://HOST/PATH@REF#FOLDER, or git+ssh://USER@HOST/PATH@REF#FOLDER",
        )
    protocols = "https:ssh" if remote else "https:http:ssh:git:file"
    with tempfile.TemporaryDirectory(prefix="jobbergate-git-", ignore_cleanup_errors=True) as name:
        _git(text, name, "init", "--quiet")
        fetch = ("fetch", "--quiet", "--depth=1", "--no-tags", "--", reference.url, reference.ref or "HEAD")
        _git(text, name, *fetch, protocols=protocols)
        commit = _git(text, name, "rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()
        _git(text, name, "checkout", "--quiet", "--detach", commit)
        folder = Path(name) / reference.subdirectory
        if not folder.is_dir() or not folder.resolve().is_relative_to(Path(name).resolve()):
            raise SourceError(
                f"the repository has no folder {reference.subdirectory!r} at {commit[:12]}",
                where=text,
                hint="name the application's folder behind #",
            )
        files = read_folder(folder, where=text)
    subdirectory = "" if reference.subdirectory == "." else f"#{reference.subdirectory}"
    last = reference.subdirectory if subdirectory else re.split("[/:]", reference.url.removesuffix(".git"))[-1]
    return files, f"git+{reference.url}@{commit}{subdirectory}", PurePosixPath(last).name


def pack(files: Mapping[str, bytes]) -> bytes:
    """Files as tar.gz: the same bytes for the same files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size = len(files[path])
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(files[path]))
    return gzip.compress(raw.getvalue(), mtime=0)


def unpack(data: bytes, source: str) -> dict[str, bytes]:
    """The files of an archive.

    Raises:
        SourceError: It is no archive, or holds more than an application may.
    """
    files: dict[str, bytes] = {}
    try:
        # A small archive may hold a great deal: no more than the limit is ever unpacked.
        raw = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MAX_RAW_BYTES + 1)
        if len(raw) > _MAX_RAW_BYTES:
            raise SourceError(_TOO_LARGE, where=source)
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            for entry in archive:
                path = PurePosixPath(entry.name)
                if entry.isdir():
                    continue
                if not entry.isfile() or path.is_absolute() or ".." in path.parts or not entry.name.isprintable():
                    raise SourceError(f"it holds {entry.name!r}, which is no file of an application", where=source)
                content = archive.extractfile(entry)
                files[path.as_posix()] = content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise SourceError(f"this is no archive of an application: {error}", where=source) from error
    if sum(map(len, files.values())) > MAX_APPLICATION_BYTES or len(files) > MAX_FILES:
        raise SourceError(_TOO_LARGE, where=source)
    return files


def check_files(files: Mapping[str, bytes], where: str) -> None:
    """Look whether an application may hold these files, whose names others chose.

    Raises:
        LoadingError: One leads out of the application, or they are too many or too large.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.isprintable():
            raise LoadingError(f"it holds {name!r}, which is no file of an application", where=where, hint="rename it")
    if sum(map(len, files.values())) > MAX_APPLICATION_BYTES or len(files) > MAX_FILES:
        raise LoadingError(_TOO_LARGE, where=where, hint="leave data out of it, and name it by its path instead")


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=_fail):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in sorted(names) + links:
            # In a worktree or a submodule, .git is a file.
            if not name.endswith((".pyc", "~", ".swp")) and name not in (".DS_Store", ".git"):
                yield Path(root, name)


def _fail(error: OSError) -> NoReturn:
    raise error


def _git(reference: str, folder: str, *arguments: str, protocols: str = "") -> str:
    environment = {name: os.environ[name] for name in _GIT_ENVIRONMENT if name in os.environ} | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        "GIT_ALLOW_PROTOCOL": protocols,
        "LC_ALL": "C",
    }
    try:
        process = subprocess.Popen(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise SourceError(f"git cannot be run: {error.strerror}", where=reference, hint="install git") from error
    try:
        out, err = process.communicate(timeout=GIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        # Its helpers (ssh, the one for https) are other processes, and hold the pipes.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise SourceError(f"git {arguments[0]} took longer than {GIT_SECONDS} s", where=reference) from error
    if process.returncode:
        said = " ".join(err.split()) or f"exit code {process.returncode}"
        raise SourceError(f"git {arguments[0]}: {said}", where=reference, hint="check the URL, the ref and your access")
    return out
