"""Where applications come from: a folder, a git repository, an archive."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobbergate_flows.applications.errors import LoadingError, SourceError

MAX_APPLICATION_BYTES = 5 << 20
MAX_FILES = 1000
GIT_SECONDS = 120

_SKIPPED = {".git", ".hg", ".svn", "__pycache__", ".ipynb_checkpoints", ".venv", ".mypy_cache", ".ruff_cache"}


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
            SourceError: It is none, or names a transport that runs commands.
        """
        match = re.fullmatch(r"git\+(?P<url>[^#]+?)(?:#(?P<folder>.*))?", text)
        if match is None:
            raise SourceError(f"{text!r} is no git reference", hint="write git+URL@REF#FOLDER")
        url, ref = match["url"], None
        # The last @ is the ref's only where it stands in the path: an earlier one belongs to user@host.
        slash = url.find("/", url.find("://") + 3 if "://" in url else 0)
        at = url.rfind("@")
        if at > slash >= 0:
            url, ref = url[:at], url[at + 1 :]
        folder = str(PurePosixPath(match["folder"] or "."))
        if not re.match(r"(https?|ssh|git|file)://|[\w.-]+@[\w.-]+:", url):
            raise SourceError(
                f"{url!r} is no URL of a git repository", where=text, hint="use https://, ssh:// or file://"
            )
        if (ref is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/+-]*", ref)) or ref == "":
            raise SourceError(f"{ref!r} is no branch, tag or commit", where=text)
        if folder.startswith(("/", "..")) or ".." in PurePosixPath(folder).parts:
            raise SourceError("the folder lies outside of the repository", where=text)
        return cls(url, ref, folder)


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of an application's folder, by their paths in it.

    Raises:
        LoadingError: There is no such folder, it holds a symbolic link, or too much.
    """
    if not folder.is_dir():
        what = "this is no folder" if folder.exists() else "there is no such folder"
        raise LoadingError(what, where=str(folder), hint="name the folder that holds jobbergate.yaml")
    files: dict[str, bytes] = {}
    total = 0
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names) + [name for name in folders if (Path(root) / name).is_symlink()]:
            path = Path(root) / name
            relative = path.relative_to(folder).as_posix()
            if name.endswith((".pyc", "~", ".swp")) or name == ".DS_Store":
                continue
            if path.is_symlink() or not path.is_file():
                raise LoadingError(
                    "an application holds regular files only",
                    where=relative,
                    hint="copy the file instead of linking it",
                )
            total += path.stat().st_size
            if total > MAX_APPLICATION_BYTES or len(files) >= MAX_FILES:
                raise LoadingError(
                    f"the application is larger than {MAX_APPLICATION_BYTES >> 20} MiB or {MAX_FILES} files",
                    where=str(folder),
                    hint="leave data out of it: name them by their path on the cluster",
                )
            files[relative] = path.read_bytes()
    return files


def read_git(text: str) -> tuple[dict[str, bytes], str, str]:
    """The files of a git reference, the same reference with the commit as its ref, and the application's name.

    Raises:
        SourceError: git cannot fetch it.
        LoadingError: as for `read_folder`.
    """
    reference = GitReference.parse(text)
    if shutil.which("git") is None:
        raise SourceError("there is no git on PATH", where=text, hint="install git")
    with tempfile.TemporaryDirectory(prefix="jobbergate-git-") as name:
        _git(text, name, "init", "--quiet")
        _git(text, name, "fetch", "--quiet", "--depth=1", "--no-tags", "--", reference.url, reference.ref or "HEAD")
        commit = _git(text, name, "rev-parse", "FETCH_HEAD").strip()
        _git(text, name, "checkout", "--quiet", "--detach", commit)
        folder = Path(name) / reference.subdirectory
        if not folder.resolve().is_relative_to(Path(name).resolve()):
            raise SourceError("the folder lies outside of the repository", where=text)
        files = read_folder(folder)
    subdirectory = "" if reference.subdirectory == "." else f"#{reference.subdirectory}"
    last = reference.subdirectory if subdirectory else reference.url.removesuffix(".git")
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
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for entry in archive:
                path = PurePosixPath(entry.name)
                if entry.isdir():
                    continue
                if not entry.isfile() or path.is_absolute() or ".." in path.parts:
                    raise SourceError(
                        f"the archive holds {entry.name!r}, which is no file of an application", where=source
                    )
                total += entry.size
                if total > MAX_APPLICATION_BYTES or len(files) >= MAX_FILES:
                    raise SourceError("the archive holds more than an application may", where=source)
                content = archive.extractfile(entry)
                files[path.as_posix()] = content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise SourceError(f"this is no archive of an application: {error}", where=source) from error
    return files


def _git(reference: str, folder: str, *arguments: str) -> str:
    environment = {
        **{
            name: os.environ[name]
            for name in (
                "PATH",
                "HOME",
                "SSH_AUTH_SOCK",
                "http_proxy",
                "https_proxy",
                "no_proxy",
                "SSL_CERT_FILE",
                "GIT_SSL_CAINFO",
            )
            if name in os.environ
        },
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", *arguments],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GIT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"git {arguments[0]} took longer than {GIT_SECONDS} s", where=reference) from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SourceError(f"git {arguments[0]}: {said}", where=reference, hint="check the URL, the ref and your access")
    return done.stdout
