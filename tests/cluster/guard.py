"""Ends what a test run has started, also when the test run itself was killed.

A small process of its own reads on a pipe what is running. When the pipe closes, whoever started the services is gone,
and it ends what is left. It imports nothing but the standard library and is run by its path.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Kind = Literal["process", "jobs", "folder", "file", "accounts"]
_PATIENCE = 10.0
# Who has a shared lock on it uses the accounts.
ACCOUNTS_LOCK = Path("/run/lock/jobbergate-flows-accounts")


class Guard:
    """The guard of this process; it starts with the first thing that it is told."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def watch(self, kind: Kind, value: str) -> None:
        """End this later: a process group by its leader's id, the jobs of a slurm.conf, a folder, a file, or accounts
        by what `end_accounts` takes, in one line."""
        self._say("watch", kind, value)

    def forget(self, kind: Kind, value: str) -> None:
        """This is ended already."""
        self._say("forget", kind, value)

    def keep(self) -> int:
        """Leave everything up after this process; the guard's process id is returned: SIGTERM to it ends all."""
        self._say("keep", "all", "")
        assert self._process is not None
        return self._process.pid

    def _say(self, *words: str) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__],
                stdin=subprocess.PIPE,
                # It outlives its caller, whose output may be a pipe: somebody waits for that one's end.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
                cwd="/",
            )
            atexit.register(self._leave)
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def _leave(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


guard = Guard()


def end_group(leader: int, *, patience: float = _PATIENCE) -> None:
    """End a process group: asked first, killed after `patience` seconds."""
    for number in (signal.SIGCONT, signal.SIGTERM):
        _signal(leader, number)
    deadline = time.monotonic() + patience
    while _alive(leader) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    _signal(leader, signal.SIGKILL)


def end_jobs(conf: str) -> None:
    """Kill what jobs of a Slurm left behind: they live in sessions of their own and outlive slurmd."""
    ours = f"SLURM_CONF={conf}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = folder.joinpath("environ").read_bytes().split(b"\0")
            title = folder.joinpath("cmdline").read_bytes()
        except OSError:
            continue
        of_a_job = any(word.startswith(b"SLURMD_NODENAME=") for word in words)
        if ours in words and (of_a_job or title.startswith(b"slurmstepd:")):
            try:
                os.kill(int(folder.name), signal.SIGKILL)
            except ProcessLookupError:
                continue


@contextlib.contextmanager
def changing_accounts() -> Iterator[None]:
    """Whatever adds or removes accounts does so within, one test run at a time."""
    with ACCOUNTS_LOCK.with_suffix(".changing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def end_accounts(mark: str, *groups: str) -> None:
    """Remove the accounts whose comment is `mark`, with their homes and what still runs as them, and groups.

    Not if another test run uses them: that one does it later.
    """
    with changing_accounts(), ACCOUNTS_LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for account in pwd.getpwall():
            if account.pw_gecos == mark:
                for folder in Path("/proc").glob("[0-9]*"):
                    with contextlib.suppress(OSError):
                        if folder.stat().st_uid == account.pw_uid:
                            os.kill(int(folder.name), signal.SIGKILL)
                subprocess.run(["userdel", "-r", account.pw_name], capture_output=True, check=False)
        for group in groups:
            subprocess.run(["groupdel", group], capture_output=True, check=False)


def _alive(leader: int) -> bool:
    try:
        return Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return


def _guard() -> None:
    watched: dict[tuple[str, str], None] = {}
    kept = False
    # A Ctrl-C is for the test run; a SIGTERM ends what was kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    try:
        for line in sys.stdin:
            verb, kind, value = line.rstrip("\n").split(" ", 2)
            if verb == "keep":
                kept = True
            elif verb == "watch":
                watched[kind, value] = None
            else:
                watched.pop((kind, value), None)
        while kept:
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for kind, value in reversed(watched):
            if kind == "process":
                end_group(int(value))
            elif kind == "jobs":
                end_jobs(value)
            elif kind == "accounts":
                end_accounts(*value.split("|"))
            elif kind == "file":
                Path(value).unlink(missing_ok=True)
            else:
                shutil.rmtree(value, ignore_errors=True)


if __name__ == "__main__":
    _guard()
