"""What an unprivileged worker needs from root: sudo's rules, and the deputy where nobody else can change it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobbergate_flows.slurm.deputy import digest_of
from jobbergate_flows.slurm.deputy_door import INSTALLED, PROGRAM
from jobbergate_flows.slurm.sudoers import NotInstallable, install_deputy, sudoers_text
from tests.cluster.accounts import WORKER, Accounts


def sudo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What sudo lets the worker's account do."""
    command = ["runuser", "-u", WORKER, "--", "sudo", "-n", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False, cwd="/", timeout=60)


def test_the_rules_are_sudos_own_language(accounts: Accounts, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(sudoers_text("jobbergate-worker", "hpc.users", INSTALLED))

    done = subprocess.run(["visudo", "-cf", str(tmp_path / "rules")], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_hold_no_wildcard_and_take_no_arguments() -> None:
    rule = sudoers_text("jobbergate-worker", "hpc", INSTALLED).splitlines()[-1]

    assert rule == f'jobbergate-worker ALL=(%hpc, !root, !#0) NOPASSWD: NOSETENV: {INSTALLED} ""'


@pytest.mark.parametrize("name", ["ALL", "", "a b", "a\nb", "%hpc", "#0", "a,b", "!a", "a=b", "*", "-a", "ä"])
def test_a_name_with_a_meaning_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(NotInstallable):
        sudoers_text(name, "hpc", INSTALLED)
    with pytest.raises(NotInstallable):
        sudoers_text("worker", name, INSTALLED)


@pytest.mark.parametrize("path", ["deputy", "/a b", "/a,/bin/sh", "/a*", "/a\n", '/a ""', "/a/../b", "/", "ALL"])
def test_a_path_with_a_meaning_of_its_own_is_refused(path: str) -> None:
    with pytest.raises(NotInstallable):
        sudoers_text("worker", "hpc", path)


def test_the_worker_starts_the_deputy_and_nothing_else(accounts: Accounts) -> None:
    deputy = str(accounts.deputy)

    assert '"user": "alice"' in sudo("-u", "alice", "--", deputy).stdout
    for arguments in (
        ("-u", "alice", "--", deputy, "argument"),
        ("-u", "alice", "--", deputy, ""),
        ("-u", "alice", "--", "/usr/bin/python3", "-I", deputy),
        ("-u", "alice", "--", "/usr/bin/id"),
        ("-u", "alice", "-s"),
        ("-u", "alice", "PYTHONSTARTUP=/tmp/x", deputy),
        ("-E", "-u", "alice", "--", deputy),
        ("-u", "alice", "-g", "root", "--", deputy),
    ):
        done = sudo(*arguments)
        assert done.returncode != 0, arguments
        assert '"user"' not in done.stdout


@pytest.mark.parametrize("user", ["root", "#0", "#-1", "#4294967295", "nobody", "munge", WORKER])
def test_the_worker_starts_no_deputy_for_whom_it_does_not_serve(accounts: Accounts, user: str) -> None:
    done = sudo("-u", user, "--", str(accounts.deputy))

    assert done.returncode != 0
    assert '"user"' not in done.stdout


@pytest.mark.usefixtures("accounts")
class TestInstalling:
    def test_the_installed_deputy_is_the_packages_own_and_roots(self, tmp_path: Path) -> None:
        target = tmp_path / "deputy"
        target.write_text("older")

        digest = install_deputy(target)

        assert target.read_bytes() == PROGRAM.read_bytes()
        assert digest == digest_of(PROGRAM.read_bytes())
        status = target.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o755)
        assert [path.name for path in tmp_path.iterdir()] == ["deputy"]

    def test_a_link_in_its_place_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "other").write_text("precious")
        (tmp_path / "deputy").symlink_to(tmp_path / "other")

        install_deputy(tmp_path / "deputy")

        assert not (tmp_path / "deputy").is_symlink()
        assert (tmp_path / "other").read_text() == "precious"

    @pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
    def test_it_is_not_installed_where_others_write(self, tmp_path: Path, mode: int) -> None:
        tmp_path.chmod(mode)

        with pytest.raises(NotInstallable, match="others could change this"):
            install_deputy(tmp_path / "deputy")

    def test_a_place_that_is_none_is_refused(self, tmp_path: Path) -> None:
        for target in ("relative", tmp_path / "missing" / "deputy"):
            with pytest.raises(NotInstallable):
                install_deputy(target)
