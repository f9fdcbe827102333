"""A real S3 server (moto's), on a port of its own: it speaks the protocol and keeps everything in memory."""

from __future__ import annotations

import os
from pathlib import Path

import httpx

from tests.cluster.folder_server import FolderServer
from tests.cluster.service import Service, free_ports

REGION = "us-east-1"


class S3Server(FolderServer):
    """`with S3Server(python) as server: ...`; what it has stored ends with its process. It takes any access key.

    Args:
        python: Of an environment that has `moto[s3,server]`.
    """

    def __init__(self, python: Path) -> None:
        super().__init__("s3-")
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.service = Service(
            "the S3 server",
            [str(python), "-I", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            self.folder / "s3.log",
            {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder), "AWS_DEFAULT_REGION": REGION},
        )

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        httpx.put(f"{self.url}/{name}", timeout=30, trust_env=False).raise_for_status()

    def answers(self) -> bool:
        """Whether it takes requests."""
        try:
            return httpx.get(f"{self.url}/moto-api/data.json", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False
