"""Small text files that are read with care and replaced whole."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_BYTES = 1024 * 1024
"""No file that is read here needs more."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory's lock, so that of two that change a file in it one comes after the other."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, *, mode: int) -> None:
    """Replace a file as a whole, so that nobody ever reads half of it. Its permissions become `mode`."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_own_text(path: Path) -> str | None:
    """The text of the own account's file; None where there is none.

    Raises:
        ValueError: It is a link, no regular file, somebody else's, writable by others, too large, or no UTF-8.
        OSError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        check_file(os.fstat(descriptor), owner=os.geteuid())
        content = file.read(MAX_BYTES + 1)
    return decoded(content)


def check_file(found: os.stat_result, *, owner: int) -> None:
    """Check that a file is a regular one, that it is `owner`'s, and that no one else may write it.

    Raises:
        ValueError: saying what it is instead.
    """
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    check_owner(found, owner=owner)


def check_owner(found: os.stat_result, *, owner: int) -> None:
    """Check that a file or directory is `owner`'s, and that no one else may write it.

    Raises:
        ValueError: saying whose it is, or who else may write it.
    """
    if found.st_uid != owner:
        raise ValueError(f"it belongs to uid {found.st_uid} instead of {owner}")
    if found.st_mode & 0o022:
        raise ValueError(f"others than its owner may write it (mode {stat.S_IMODE(found.st_mode):04o})")


def check_place(path: Path, *, owner: int) -> None:
    """Check that nobody but `owner` and root could put another file at a path.

    Its directory must be `owner`'s, and no link; those above may be root's, and a sticky one (`/tmp`) may be
    everybody's. A directory that is not there is well: nothing is there either.

    Raises:
        ValueError: naming the directory, and what is wrong with it.
    """
    directory = path.absolute().parent
    if directory.is_symlink():
        raise ValueError(f"{directory} is a symbolic link")
    # By its name and by where links lead: either way must be safe.
    above = {*directory.parents, *directory.resolve().parents}
    for place in sorted({directory, *above}):
        try:
            found = os.lstat(place)
        except FileNotFoundError:
            continue
        try:
            _check_above(found, owner=owner) if place in above else check_owner(found, owner=owner)
        except ValueError as error:
            raise ValueError(f"directory {place}: {error}") from None


def _check_above(found: os.stat_result, *, owner: int) -> None:
    if found.st_uid not in (0, owner):
        raise ValueError(f"it belongs to uid {found.st_uid}")
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise ValueError(f"others than its owner may write it (mode {stat.S_IMODE(found.st_mode):04o})")


def decoded(content: bytes) -> str:
    """The content as text.

    Raises:
        ValueError: There is too much of it, or it is no UTF-8.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text, from byte {error.start} on") from error
