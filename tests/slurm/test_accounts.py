"""Whose name a worker may act in; a user directory that is down is made of a C library that says so."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
from typing import Any

import pytest

from jobbergate_flows.slurm.accounts import AccountRefused, AccountRules, DirectoryDown, find_account, known_account
from jobbergate_flows.slurm.errors import ClusterUnreachable
from tests.cluster.accounts import GROUP, WORKER, Accounts

ANY = AccountRules()


class Library:
    """A C library whose user directory holds accounts by name, or fails with an errno."""

    def __init__(self, *, error: int = 0, too_small: int = 0, **records: tuple[str, int, str]) -> None:
        self.error, self.too_small, self.records = error, too_small, records
        self.groups: dict[str, int] = {}
        self.members: dict[str, tuple[str, ...]] = {}
        self.own_group_error = 0
        self._kept: list[Any] = []

    def getpwnam_r(self, name: bytes, record: Any, _buffer: Any, _size: Any, result: Any) -> int:
        if self.too_small:
            self.too_small -= 1
            return errno.ERANGE
        known = self.records.get(name.decode())
        if known is not None:
            entry = record._obj
            entry.pw_name, entry.pw_uid, entry.pw_shell = known[0].encode(), known[1], known[2].encode()
            entry.pw_gid, entry.pw_dir = known[1], b"/home/x"
            self._found(result)
        return self.error

    def getgrnam_r(self, name: bytes, record: Any, _buffer: Any, _size: Any, result: Any) -> int:
        if name.decode() in self.groups:
            record._obj.gr_gid = self.groups[name.decode()]
            members = self.members.get(name.decode(), ())
            record._obj.gr_mem = (ctypes.c_char_p * (len(members) + 1))(*(member.encode() for member in members), None)
            self._kept.append(record._obj.gr_mem)
            self._found(result)
        return self.error

    def getgrgid_r(self, _gid: Any, _record: Any, _buffer: Any, _size: Any, _result: Any) -> int:
        return self.own_group_error

    def _found(self, result: Any) -> None:
        self._kept.append(ctypes.create_string_buffer(8))
        result._obj.value = ctypes.addressof(self._kept[-1])


def test_a_real_account_is_found_as_the_system_knows_it() -> None:
    me = pwd.getpwuid(os.geteuid())

    account = known_account(me.pw_name)

    assert (account.name, account.uid, account.gid) == (me.pw_name, me.pw_uid, me.pw_gid)
    assert (account.home, account.shell) == (me.pw_dir, me.pw_shell)
    assert account.groups == tuple(os.getgrouplist(me.pw_name, me.pw_gid))


def test_a_person_is_let_in() -> None:
    account = find_account("ann", rules=ANY, library=Library(ann=("ann", 1000, "/bin/bash")))

    assert (account.uid, account.groups) == (1000, (1000,))


def test_a_record_that_needs_more_room_gets_it() -> None:
    assert find_account("ann", rules=ANY, library=Library(too_small=5, ann=("ann", 1000, ""))).shell == "/bin/sh"


@pytest.mark.parametrize("code", [0, errno.ENOENT, errno.ESRCH])
def test_whom_the_directory_does_not_know_is_unknown(code: int) -> None:
    with pytest.raises(AccountRefused, match="there is no such account"):
        find_account("ann", rules=ANY, library=Library(error=code))


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR, errno.ENFILE, errno.EMFILE, errno.ECONNREFUSED]
)
def test_a_directory_that_is_down_is_asked_again_later(code: int) -> None:
    with pytest.raises(DirectoryDown, match="does not answer") as caught:
        find_account("ann", rules=ANY, library=Library(error=code))

    assert isinstance(caught.value, ClusterUnreachable)


@pytest.mark.parametrize("uid", [0, 1, 999])
@pytest.mark.parametrize("rules", [ANY, AccountRules(users=("sys",))])
def test_nobody_below_the_floor_is_let_in(uid: int, rules: AccountRules) -> None:
    with pytest.raises(AccountRefused, match=f"uid {uid}"):
        find_account("sys", rules=rules, library=Library(sys=("sys", uid, "/bin/bash")))


def test_root_is_never_let_in() -> None:
    people: dict[str, Any] = {"root": ("root", 0, "/bin/bash"), "toor": ("toor", 0, "/bin/bash")}
    for name in people:
        with pytest.raises(AccountRefused, match="uid 0"):
            find_account(name, rules=AccountRules(min_uid=0), library=Library(**people))


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false"])
def test_who_may_not_log_in_is_not_let_in(shell: str) -> None:
    with pytest.raises(AccountRefused, match="may not log in"):
        find_account("ann", rules=ANY, library=Library(ann=("ann", 1000, shell)))


@pytest.mark.parametrize(
    "name",
    ["", "1001", "#1001", "%users", "-u", "-", "ann ", " ann", "a b", "a,b", "a:b", "a/b", "a\nb", "a\0b", "ann\n", "ä",
     "１００１", "a\x1b[2J", "*", "a" * 300],
)  # fmt: skip
def test_what_is_no_name_is_not_looked_up(name: str) -> None:
    with pytest.raises(AccountRefused, match="no account's name"):
        find_account(name, rules=ANY, library=Library(error=errno.EIO))


@pytest.mark.parametrize("known_as", ["ann", "ANN", "Ann@example.org", ""])
def test_a_name_that_comes_back_different_is_not_let_in(known_as: str) -> None:
    with pytest.raises(AccountRefused, match="knows this account as"):
        find_account("Ann", rules=ANY, library=Library(Ann=(known_as, 1000, "/bin/bash")))


def test_only_the_allowed_are_let_in() -> None:
    library = Library(ann=("ann", 1000, "/bin/bash"), bea=("bea", 1001, "/bin/bash"))
    library.groups = {"hers": 1000, "theirs": 5}

    assert find_account("ann", rules=AccountRules(groups=("theirs", "hers")), library=library).uid == 1000
    assert find_account("bea", rules=AccountRules(groups=("theirs",), users=("bea",)), library=library).uid == 1001
    for rules in (AccountRules(groups=("hers",)), AccountRules(users=("ann",))):
        with pytest.raises(AccountRefused, match="not among those that are allowed"):
            find_account("bea", rules=rules, library=library)


def test_a_group_that_is_not_there_lets_nobody_in() -> None:
    library = Library(ann=("ann", 1000, "/bin/bash"))

    with pytest.raises(AccountRefused, match="there is no group 'gone'"):
        find_account("ann", rules=AccountRules(groups=("gone",)), library=library)


def test_a_member_whose_groups_could_not_be_asked_for_is_not_refused_for_good() -> None:
    library = Library(ann=("ann", 1000, "/bin/bash"))
    library.groups = {"theirs": 5}
    rules = AccountRules(groups=("theirs",))

    library.members = {"theirs": ("bea", "bea", "ann")}
    with pytest.raises(DirectoryDown, match="as a member of theirs"):
        find_account("ann", rules=rules, library=library)

    library.members = {"theirs": ("bea",)}
    with pytest.raises(AccountRefused, match="not among those that are allowed"):
        find_account("ann", rules=rules, library=library)


@pytest.mark.parametrize("code", [errno.EIO, errno.ETIMEDOUT, errno.ECONNREFUSED])
def test_nobody_is_refused_for_good_while_the_directory_does_not_answer_for_groups(code: int) -> None:
    library = Library(ann=("ann", 1000, "/bin/bash"))
    library.groups, library.own_group_error = {"theirs": 5}, code

    with pytest.raises(DirectoryDown, match="does not answer"):
        find_account("ann", rules=AccountRules(groups=("theirs",)), library=library)


def test_the_systems_own_members_are_seen(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(_name: str, gid: int) -> list[int]:
        return [gid]

    monkeypatch.setattr(os, "getgrouplist", forgetful)

    with pytest.raises(DirectoryDown, match=f"as a member of {GROUP}"):
        find_account("alice", rules=AccountRules(groups=(GROUP,)))
    with pytest.raises(AccountRefused, match="not among those that are allowed"):
        find_account(WORKER, rules=AccountRules(min_uid=1, groups=(GROUP,)))


def test_real_accounts_are_told_apart(accounts: Accounts) -> None:
    rules = AccountRules(groups=(GROUP,))

    alice = find_account("alice", rules=rules)

    assert sorted(alice.groups) == sorted(map(int, accounts.run_as("alice", "id", "-G").split()))
    for name in (WORKER, "root", "nobody", "munge", "no-such-person", "Alice"):
        with pytest.raises(AccountRefused):
            find_account(name, rules=rules)
