"""A worker as a process of its own, as a site runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.waiting import wait_until


class WorkerProcess:
    """`prefect worker start --pool POOL --type TYPE`, with its log in a file."""

    def __init__(
        self,
        pool: str,
        folder: Path,
        environment: Mapping[str, str],
        *,
        kind: str = "jobbergate-slurm",
        limit: int | None = None,
    ) -> None:
        self.pool = pool
        self.kind = kind
        self.limit = limit
        self.log = folder / "worker.log"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "SLURM", "JOBBERGATE"))
        } | dict(environment)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        said_before = self._starts()
        limit = ["--limit", str(self.limit)] if self.limit is not None else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", self.pool, "--type", self.kind, *limit],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: self._starts() > said_before or self._died(), 60, "the worker")

    def kill(self) -> None:
        """SIGKILL: it gets no chance to do anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as systemd stops it."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _starts(self) -> int:
        return self.log.read_text(errors="replace").count(" started!") if self.log.exists() else 0

    def _died(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"the worker ended: {self.log.read_text(errors='replace')[-3000:]}")
        return False
