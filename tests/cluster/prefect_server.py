"""A real Prefect server, with a folder and on a port of its own."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

from tests.cluster.folder_server import FolderServer
from tests.cluster.service import Service, free_ports


class PrefectServer(FolderServer):
    """`with PrefectServer() as server: ...`; stopping and starting keeps port and database.

    Args:
        port: Otherwise a free one.
        database: SQLAlchemy's URL; otherwise SQLite in the server's folder.
    """

    patience = 90.0

    def __init__(self, port: int | None = None, database: str | None = None) -> None:
        super().__init__("prefect-")
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

    def pause(self) -> None:
        """It accepts connections and answers none."""
        self.service.pause()

    def resume(self) -> None:
        self.service.resume()

    def answers(self) -> bool:
        """Whether its API is healthy."""
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
