"""Accounts of this host, and in whose name a worker may act at all.

A user directory (LDAP) that is down is told apart from a user that does not exist: Python's `pwd` does not do that, the
C library's own functions do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from jobbergate_flows.slurm.errors import ClusterUnreachable, SlurmError


class AccountRefused(SlurmError):
    """Nothing is done in this account's name, now or later."""


class DirectoryDown(ClusterUnreachable):
    """The user directory does not answer: asking again later is safe."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account as the host knows it. `groups` are all its group ids, its own among them."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AccountRules:
    """In whose name a worker may act.

    Args:
        min_uid: No account below; root never.
        groups: Only members of one of these groups; empty for no such limit.
        users: These accounts too; where `groups` is empty, only these.
    """

    min_uid: int = 1000
    groups: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


class CLibrary(Protocol):
    """What is used of the C library: all return an `errno` and fill in a record."""

    @property
    def getpwnam_r(self) -> Callable[..., int]: ...

    @property
    def getgrnam_r(self) -> Callable[..., int]: ...

    @property
    def getgrgid_r(self) -> Callable[..., int]: ...


def find_account(name: str, *, rules: AccountRules, library: CLibrary | None = None) -> Account:
    """The account of that name, if a worker may act for it. May take as long as the user directory takes.

    Args:
        library: Another C library; for tests.

    Raises:
        AccountRefused: It is unknown, may not log in, or is not among those whom `rules` allow.
        DirectoryDown: Whether it exists cannot be known now.
    """
    account = known_account(name, library=library)
    floor = max(rules.min_uid, 1)
    if account.uid < floor:
        raise AccountRefused(
            f"the account has uid {account.uid}: it belongs to the system, not to a person",
            where=name,
            hint=f"uids from {floor} on are allowed",
        )
    if os.path.basename(account.shell) in _NO_LOGIN:
        raise AccountRefused(f"the account may not log in: its shell is {account.shell}", where=name)
    if (rules.groups or rules.users) and name not in rules.users and not _is_member(account, rules.groups, library):
        allowed = f"members of {', '.join(rules.groups)}" if rules.groups else ", ".join(rules.users)
        raise AccountRefused("the account is not among those that are allowed", where=name, hint=f"allowed: {allowed}")
    return account


def known_account(name: str, *, library: CLibrary | None = None) -> Account:
    """The account of exactly that name, whatever it is.

    Raises:
        AccountRefused: There is none, or the name is none: a number, one that `sudo` or Slurm would take for something
            else, or one that the user directory writes in another way.
        DirectoryDown: Whether it exists cannot be known now.
    """
    if not _NAME.fullmatch(name) or name.isdigit():
        raise AccountRefused(f"{name[:100]!r} is no account's name", hint="name an account of this host")
    library = library or _LIBC
    found = _look_up(library.getpwnam_r, _Passwd, name)
    if found is None:
        raise AccountRefused("there is no such account", where=name, hint="see getent passwd")
    record, texts, _ = found
    if texts["pw_name"] != name:
        raise AccountRefused(
            f"the user directory knows this account as {texts['pw_name']!r}", where=name, hint="name it like that"
        )
    groups = tuple(os.getgrouplist(name, record.pw_gid))
    return Account(name, record.pw_uid, record.pw_gid, texts["pw_dir"], texts["pw_shell"] or "/bin/sh", groups)


# Letters that sudo (#uid, %group), Slurm's lists (a,b) and option parsers (-x) take for something else are not in it.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+\\-]{0,255}\$?", re.ASCII)
_NO_LOGIN = {"nologin", "false", "true", "sync", "halt", "shutdown"}
_NOT_FOUND = {0, errno.ENOENT, errno.ESRCH}
_MAX_RECORD = 16 << 20


class _Passwd(ctypes.Structure):
    _fields_ = (
        ("pw_name", ctypes.c_char_p),
        ("pw_passwd", ctypes.c_char_p),
        ("pw_uid", ctypes.c_uint32),
        ("pw_gid", ctypes.c_uint32),
        ("pw_gecos", ctypes.c_char_p),
        ("pw_dir", ctypes.c_char_p),
        ("pw_shell", ctypes.c_char_p),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        ("gr_name", ctypes.c_char_p),
        ("gr_passwd", ctypes.c_char_p),
        ("gr_gid", ctypes.c_uint32),
        ("gr_mem", ctypes.POINTER(ctypes.c_char_p)),
    )


Record = TypeVar("Record", bound=ctypes.Structure)


def _is_member(account: Account, groups: tuple[str, ...], library: CLibrary | None) -> bool:
    library = library or _LIBC
    for group in groups:
        found = _look_up(library.getgrnam_r, _Group, group)
        if found is None:
            raise AccountRefused(
                f"there is no group {group!r}, which the worker's settings allow", where=account.name, hint="make it"
            )
        if found[0].gr_gid in account.groups:
            return True
        if account.name in found[2]:
            # getgrouplist tells no error: it leaves out what it could not ask for.
            raise DirectoryDown(
                f"the user directory names the account as a member of {group}, and not that group as one of its groups",
                where=account.name,
                hint="see whether LDAP is up",
            )
    # Whoever is refused is refused for good: not while the directory does not answer for the account's own group.
    _look_up(library.getgrgid_r, _Group, account.gid)
    return False


def _look_up(
    function: Callable[..., int], kind: type[Record], key: str | int
) -> tuple[Any, dict[str, str], frozenset[str]] | None:
    """The record with its texts, and a group's members; None when there is none.

    The record's own texts live in a buffer that is gone.
    """
    size = 1 << 12
    asked = key.encode() if isinstance(key, str) else ctypes.c_uint32(key)
    while True:
        record, buffer, result = kind(), ctypes.create_string_buffer(size), ctypes.c_void_p()
        # EINTR is an error like the others here: glibc itself asks again.
        code = function(asked, ctypes.byref(record), buffer, ctypes.c_size_t(size), ctypes.byref(result))
        if code == errno.ERANGE and size < _MAX_RECORD:
            size *= 2
            continue
        if code == 0 and result.value:
            texts = {
                entry[0]: os.fsdecode(getattr(record, entry[0]) or b"")
                for entry in kind._fields_
                if entry[1] is ctypes.c_char_p
            }
            return record, texts, _members(record)
        if code in _NOT_FOUND:
            return None
        raise DirectoryDown(
            f"the user directory does not answer: {os.strerror(code)}", where=str(key), hint="see whether LDAP is up"
        )


def _members(record: Any) -> frozenset[str]:
    names: list[bytes] = []
    if isinstance(record, _Group) and record.gr_mem:
        while (name := record.gr_mem[len(names)]) is not None:
            names.append(name)
    return frozenset(map(os.fsdecode, names))


_LIBC: CLibrary = ctypes.CDLL(None)
