"""A real InfluxDB 1.x, in a folder and on a port of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import httpx

from tests.cluster.folder_server import FolderServer
from tests.cluster.service import Service, free_ports

DATABASE = "slurm"
USER = "reader"
PASSWORD = "reader's password"

_ADMIN = ("admin", "admin")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONF = """\
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
[monitor]
  store-enabled = false
[continuous_queries]
  enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  auth-enabled = {authenticate}
  log-enabled = false
  https-enabled = {tls}
  https-certificate = "{certificate}"
  https-private-key = "{key}"
"""


def missing() -> list[str]:
    """What this machine lacks for InfluxDB; empty when it can be started."""
    return [] if shutil.which("influxd", path=_PATH) else ["influxd"]


class InfluxServer(FolderServer):
    """`with InfluxServer() as server: ...`; it has the empty database `slurm`.

    Args:
        authenticate: Let in nobody but `USER`, who may read `slurm`, with `PASSWORD`, and the server's own admin.
        certificate, key: Files with which it answers on https.
    """

    def __init__(self, *, authenticate: bool = False, certificate: Path | None = None, key: Path | None = None) -> None:
        super().__init__("influxdb-")
        self.port, rpc = free_ports(2)
        self.url = f"https://localhost:{self.port}" if certificate else f"http://127.0.0.1:{self.port}"
        self._authenticate = authenticate
        self._client = httpx.Client(
            base_url=self.url, auth=_ADMIN if authenticate else None, verify=False, timeout=120, trust_env=False
        )
        conf = self.folder / "influxdb.conf"
        conf.write_text(
            _CONF.format(
                folder=self.folder,
                rpc=rpc,
                port=self.port,
                authenticate=str(authenticate).lower(),
                tls=str(certificate is not None).lower(),
                certificate=certificate or "",
                key=key or "",
            )
        )
        program = shutil.which("influxd", path=_PATH) or "influxd"
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder)}
        self.service = Service("influxd", [program, "-config", str(conf)], self.folder / "influxd.log", environment)

    def start(self) -> None:
        """Start it, make its database and users where there are none, and wait until it answers."""
        super().start()
        if self._authenticate:
            self.query(f"CREATE USER {_ADMIN[0]} WITH PASSWORD '{_ADMIN[1]}' WITH ALL PRIVILEGES")
        self.query(f"CREATE DATABASE {DATABASE}")
        if self._authenticate:
            quoted = PASSWORD.replace("'", "\\'")
            self.query(f"CREATE USER {USER} WITH PASSWORD '{quoted}'; GRANT READ ON {DATABASE} TO {USER}")

    def answers(self) -> bool:
        """Whether it takes requests."""
        try:
            return self._client.get("/ping", timeout=5).status_code == 204
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """End the process and remove the folder."""
        self._client.close()
        super().close()

    def query(self, text: str, database: str = DATABASE) -> list[dict[str, Any]]:
        """Run InfluxQL as the admin, and return the results of its statements."""
        answer = self._client.post("/query", data={"q": text, "db": database, "epoch": "s"})
        results: list[dict[str, Any]] = answer.json().get("results", [])
        if answer.is_error or any("error" in result for result in results):
            raise RuntimeError(f"{text}: {answer.text}")
        return results

    def write(self, lines: str, database: str = DATABASE, *, precision: Literal["s", "ns"] = "s") -> None:
        """Write points in line protocol, whose times are in seconds or in nanoseconds."""
        answer = self._client.post("/write", params={"db": database, "precision": precision}, content=lines.encode())
        if answer.is_error:
            raise RuntimeError(answer.text)
