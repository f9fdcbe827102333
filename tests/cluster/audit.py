"""A socket in the place of syslog's, that keeps what it is told."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any


class AuditSocket:
    """Bound at `path` for as long as it is not closed; everybody may write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        path.chmod(0o666)
        self._heard: list[dict[str, Any]] = []

    def records(self, flow_run: object) -> list[dict[str, Any]]:
        """What was said of a flow run until now, in order."""
        while True:
            try:
                line = self._socket.recv(1 << 16).decode()
            except BlockingIOError:
                break
            self._heard.append(json.loads(line[line.index("{") :]))
        return [record for record in self._heard if record["flow_run"] == str(flow_run)]

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)
