"""Looking for secrets where none may be: what is written, and what processes were started with."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.site import API_KEY

VALUE = "a-v3ry-s3cret-value"
"""A flow's own, beside the worker's key."""

SECRETS = (API_KEY.encode(), VALUE.encode())


def holding_secrets(*folders: Path) -> list[Path]:
    """The files below that hold a secret."""
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and has_secret(path)]


def command_lines_with_secrets() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if has_secret(path)]


def has_secret(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        # It has ended, or is a socket's.
        return False
    return any(secret in content for secret in SECRETS)
