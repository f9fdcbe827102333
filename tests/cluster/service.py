"""One process that a test owns, in a group of its own, with its output in a file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import SystemRandom

from tests.cluster.guard import guard
from tests.cluster.waiting import wait_until

_LOG_END = 3000


class ServiceFailed(RuntimeError):
    """A service did not come up, or ended by itself; the message holds the end of its log."""


class Service:
    """A foreground process that can be started, paused, resumed, stopped and killed, more than once."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        user: str | None = None,
        cwd: str = "/",
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self.environment = dict(environment)
        self.user = user
        self.cwd = cwd
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.cwd,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
            )
        guard.watch("process", str(self.process.pid))

    def stop(self, patience: float = 20) -> None:
        """SIGTERM, SIGKILL after `patience` seconds; what is left of its group goes with it."""
        self.resume()
        self._end(signal.SIGTERM, patience, whole_group=True)

    def kill(self) -> None:
        """SIGKILL to it alone: it gets no chance to do anything, and its children live on."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it goes on holding its port, and answers nothing."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_group(signal.SIGCONT)

    def wait_ready(self, condition: Callable[[], object], timeout: float = 60) -> None:
        """Wait until the condition is true, or raise `ServiceFailed` when the process ends or the time is over."""

        def ready() -> bool:
            if self.process is None or self.process.poll() is not None:
                code = None if self.process is None else self.process.returncode
                raise ServiceFailed(f"{self.name} ended with exit code {code}; its log ends:\n{self.log_end()}")
            return bool(condition())

        try:
            wait_until(ready, timeout, self.name)
        except TimeoutError as error:
            raise ServiceFailed(
                f"{self.name} did not come up in {timeout:g} s; its log ends:\n{self.log_end()}"
            ) from error

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-_LOG_END:] if self.log.exists() else ""

    def _end(self, number: signal.Signals, patience: float = 20, *, whole_group: bool = False) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if whole_group:
            self._signal_group(signal.SIGKILL)
        guard.forget("process", str(self.process.pid))
        self.process = None

    def _signal_group(self, number: signal.Signals) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, below the range from which the kernel serves everybody else."""
    found: list[int] = []
    while len(found) < count:
        port = SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
