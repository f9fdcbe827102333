"""A real Prefect server, with a folder and on a port of its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.guard import guard
from tests.cluster.service import Service, free_ports


class PrefectServer:
    """`with PrefectServer() as server: ...`; stopping and starting keeps port and database.

    Args:
        port: Otherwise a free one.
        database: SQLAlchemy's URL; otherwise SQLite in the server's folder.
    """

    def __init__(self, port: int | None = None, database: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="prefect-"))
        guard.watch("folder", str(self.folder))
        self.port = port or free_ports(1)[0]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        environment |= {
            "PREFECT_HOME": str(self.folder),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        if database is not None:
            environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database
        self.service = Service(
            "Prefect server",
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
            self.folder / "server.log",
            environment,
        )

    @property
    def url(self) -> str:
        """Where the UI is."""
        return f"http://127.0.0.1:{self.port}"

    ui_url = url

    @property
    def api_url(self) -> str:
        return f"{self.url}/api"

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
        """Start it and wait until its API is healthy."""
        self.service.start()
        self.service.wait_ready(self._healthy, 90)

    def stop(self) -> None:
        """End the process; the database stays."""
        self.service.stop()

    def pause(self) -> None:
        """It accepts connections and answers none."""
        self.service.pause()

    def resume(self) -> None:
        self.service.resume()

    def close(self) -> None:
        """End the process and remove the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        guard.forget("folder", str(self.folder))

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
