"""A real PostgreSQL, in a folder and on a port of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster.folder_server import FolderServer
from tests.cluster.service import Service, free_ports

USER = "postgres"


def programs() -> Path | None:
    """Where Debian keeps the newest PostgreSQL's programs; None when it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def missing_for_postgres() -> list[str]:
    """What this machine lacks for it; empty when it can be started."""
    return ([] if os.geteuid() == 0 else ["root"]) + ([] if programs() else ["postgresql"])


class PostgresServer(FolderServer):
    """`with PostgresServer() as server: ...`; to be run as root: PostgreSQL itself runs as its own account."""

    def __init__(self) -> None:
        found = programs()
        if found is None:
            raise RuntimeError("no PostgreSQL here: apt-get install postgresql")
        super().__init__("postgres-")
        shutil.chown(self.folder, USER, USER)
        self.port = free_ports(1)[0]
        self._programs = found
        self._data = self.folder / "data"
        self._environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        self.service = Service(
            "PostgreSQL",
            [
                *(str(found / "postgres"), "-D", str(self._data), "-p", str(self.port), "-k", str(self.folder)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"),
            ],
            self.folder / "postgres.log",
            self._environment,
            user=USER,
        )

    def url(self, driver: str, database: str = "postgres") -> str:
        """SQLAlchemy's URL of a database.

        Args:
            driver: `asyncpg` or `psycopg`.
            database: Its first one, or one of `create_database`.
        """
        return f"postgresql+{driver}://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make its database where there is none, start it and wait until it answers."""
        if not self._data.exists():
            make = [str(self._programs / "initdb"), "-D", str(self._data), "--auth=trust", "--no-sync", "-E", "UTF8"]
            subprocess.run(make, check=True, capture_output=True, user=USER, group=USER, cwd="/", env=self._environment)
        super().start()

    def create_database(self, name: str) -> None:
        """Make one more database, an empty one of `USER`'s."""
        self._run("createdb", "-U", USER, name).check_returncode()

    def answers(self) -> bool:
        """Whether it takes connections."""
        return self._run("pg_isready", "-q").returncode == 0

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(self._programs / program), "-h", "127.0.0.1", "-p", str(self.port), *arguments]
        return subprocess.run(command, check=False, capture_output=True, env=self._environment)
