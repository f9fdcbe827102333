"""A server of one process, with a folder of its own that ends with it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.guard import guard
from tests.cluster.service import Service


class FolderServer:
    """`with Server() as server: ...`; stopping and starting keeps the folder, and so what it has stored.

    Who derives from it makes `service`, and says when it answers.
    """

    service: Service
    patience = 60.0
    """Seconds in which it must answer after its start."""

    def __init__(self, prefix: str) -> None:
        # The paths of Unix sockets are short: so is the folder's.
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        guard.watch("folder", str(self.folder))

    def answers(self) -> bool:
        """Whether it is ready."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.service.start()
        self.service.wait_ready(self.answers, self.patience)

    def stop(self) -> None:
        """End the process; the folder stays."""
        self.service.stop()

    def close(self) -> None:
        """End the process and remove the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        guard.forget("folder", str(self.folder))
