"""A worker as a process of its own, as a site runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.service import Service

_FOREIGN = ("PREFECT", "SLURM", "SBATCH", "JOBBERGATE")


class WorkerProcess(Service):
    """`prefect worker start --pool POOL`, with its log in `folder`/worker.log: Prefect finds the type by the pool.

    `process` is None while it does not run. Its environment is the test run's, without anybody's settings, and
    `environment` on top.
    """

    def __init__(
        self,
        pool: str,
        folder: Path,
        environment: Mapping[str, str],
        *,
        kind: str = "jobbergate-slurm",
        limit: int | None = None,
        user: str | None = None,
        python: str = sys.executable,
    ) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        most = [] if limit is None else ["--limit", str(limit)]
        super().__init__(
            "worker",
            [python, "-m", "prefect", "worker", "start", "--pool", pool, *most],
            folder / "worker.log",
            own | dict(environment),
            user=user,
            cwd="/" if user else os.getcwd(),
        )
        self.pool = pool
        self.kind = kind
        """The type that its pool is to have."""

    def start(self) -> None:
        """Start it and wait until it says that it has started."""
        said_before = self._starts()
        super().start()
        # The server looks for the pool's type in a list that it fetches from far away first, where it can.
        self.wait_ready(lambda: self._starts() > said_before, 180)

    def stop(self, patience: float = 40) -> None:
        super().stop(patience)

    def _starts(self) -> int:
        return self.log.read_text(errors="replace").count(" started!") if self.log.exists() else 0
