"""Real accounts: alice, bob and carol, an unprivileged worker with sudo's rule for the deputy, and a renderer for all.

Needs root. The accounts are made where they are missing, and removed by the last test run that uses them.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import jobbergate_flows
from jobbergate_flows.slurm.accounts import Account, AccountRules
from jobbergate_flows.slurm.deputy_door import DeputyDoor, Root, Start, Sudo, Way
from jobbergate_flows.slurm.sudoers import install_deputy, sudoers_text
from tests.cluster.guard import ACCOUNTS_LOCK, changing_accounts, end_accounts, guard
from tests.cluster.slurm import ACCOUNT, SlurmCluster

USERS = ("alice", "bob", "carol")
WORKER = "jobbergate-worker"
GROUP = "jobbergate-users"
_SECOND_GROUP = "jobbergate-project"
_MARK = "made by jobbergate-flows tests"
_MADE = (_MARK, GROUP, _SECOND_GROUP)
_PROGRAMS = ("sudo", "visudo", "useradd", "userdel", "groupadd", "runuser")
_PYTHON = "/usr/bin/python3"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def missing_for_accounts() -> list[str]:
    """What this machine lacks for accounts of the tests' own; empty when they can be made."""
    lacking = [] if os.geteuid() == 0 else ["root"]
    lacking += [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    return lacking + ([] if Path(_PYTHON).exists() else [_PYTHON])


@dataclass(frozen=True)
class SudoAsWorker:
    """`Sudo` as the unprivileged worker's account has it."""

    sudo: Sudo
    for_others = True
    hint = Sudo.hint

    @property
    def place(self) -> str:
        return self.sudo.place

    def start(self, account: Account) -> Start:
        start = self.sudo.start(account)
        return Start(("runuser", "-u", WORKER, "--", *start.arguments))


class Accounts:
    """The accounts, and the deputy installed for them: `with Accounts() as accounts: ...`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jobbergate-accounts-", dir="/tmp"))
        self.folder.chmod(0o755)
        guard.watch("folder", str(self.folder))
        self.deputy = self.folder / "deputy"
        self.sudo = SudoAsWorker(Sudo(str(self.deputy)))
        self.root = Root(_PYTHON, str(self.deputy))
        self._rules = Path(f"/etc/sudoers.d/jobbergate-flows-tests-{os.getpid()}")
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        with changing_accounts():
            self._lock = ACCOUNTS_LOCK.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            guard.watch("accounts", "|".join(_MADE))
            for group in (GROUP, _SECOND_GROUP):
                _run("groupadd", "-f", group)
            for name in (*USERS, WORKER):
                if not _exists(name):
                    _run("useradd", "-m", "-s", "/bin/bash", "-c", _MARK, name)
            for name in USERS:
                _run("usermod", "-a", "-G", GROUP, name)
            _run("usermod", "-a", "-G", _SECOND_GROUP, "alice")
        install_deputy(self.deputy)
        guard.watch("file", str(self._rules))
        self._rules.touch(mode=0o440)
        self._rules.write_text(sudoers_text(WORKER, GROUP, str(self.deputy)))

    def _remove(self) -> None:
        self._rules.unlink(missing_ok=True)
        guard.forget("file", str(self._rules))
        shutil.rmtree(self.folder, ignore_errors=True)
        guard.forget("folder", str(self.folder))
        if self._lock is not None:
            self._lock.close()
            end_accounts(*_MADE)
            guard.forget("accounts", "|".join(_MADE))

    def door(self, user: str, how: Way | None = None, **options: object) -> DeputyDoor:
        """A door to a user's account, as a worker that is root has it if not otherwise."""
        rules = AccountRules(groups=(GROUP,))
        return DeputyDoor(user, how or self.root, rules=rules, **options)  # type: ignore[arg-type]

    def admit(self, slurm: SlurmCluster) -> None:
        """Let the users submit jobs."""
        for name in USERS:
            # That one has it already is an error to sacctmgr.
            user = ("user", name, f"account={ACCOUNT}", f"defaultaccount={ACCOUNT}")
            slurm.run("sacctmgr", "-i", "add", *user, check=False)

    def run_as(self, user: str, *arguments: str, check: bool = True) -> str:
        """Run a program as a user, and return what it says."""
        done = subprocess.run(
            ["runuser", "-u", user, "--", *arguments], capture_output=True, text=True, check=False, cwd="/"
        )
        if check and done.returncode:
            raise RuntimeError(f"{arguments[0]} as {user} exited with {done.returncode}: {done.stderr}")
        return done.stdout

    def renderer(self) -> tuple[str, str]:
        """A Python and the renderer's program, that every user can run: copies, as a checkout may be root's alone."""
        package = Path(jobbergate_flows.__file__).parent
        copy = self.folder / "lib" / "jobbergate_flows"
        if not copy.exists():
            shutil.copytree(package / "applications", copy / "applications", ignore=shutil.ignore_patterns("__pyc*"))
            shutil.copy(package / "errors.py", copy)
            shutil.copy(package / "__init__.py", copy)
            _run(_PYTHON, "-m", "venv", "--without-pip", str(self.folder / "venv"))
            site = next((self.folder / "venv" / "lib").glob("python*")) / "site-packages"
            for name in ("jinja2", "markupsafe"):
                found = importlib.util.find_spec(name)
                assert found is not None
                assert found.origin is not None
                shutil.copytree(Path(found.origin).parent, site / name, ignore=shutil.ignore_patterns("__pyc*"))
            _run("chmod", "-R", "a+rX", str(self.folder / "lib"), str(self.folder / "venv"))
        return str(self.folder / "venv" / "bin" / "python"), str(copy / "applications" / "child" / "program.py")

    def installation(self) -> dict[str, str]:
        """The environment in which every user's /usr/bin/python3 has this package and all that it needs: a copy."""
        site = self.folder / "site-packages"
        if not site.exists():
            package = Path(jobbergate_flows.__file__).parent
            found = importlib.util.find_spec("prefect")
            assert found is not None
            assert found.origin is not None
            shutil.copytree(
                Path(found.origin).parents[1], site, ignore=shutil.ignore_patterns("__pyc*", "__editable__*")
            )
            for name in ("jobbergate_flows", "agent_worker"):
                shutil.copytree(package.parent / name, site / name, ignore=shutil.ignore_patterns("__pyc*"))
            _run("chmod", "-R", "a+rX", str(site))
        return {"PYTHONPATH": str(site), "PATH": _PATH, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _run(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env={"PATH": _PATH, "LC_ALL": "C"})
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} exited with {done.returncode}: {done.stderr}")
