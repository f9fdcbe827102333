"""Who is submitting what just now, and which worker lives: one process, and one coroutine in it, has a key at a time.

A claim is never stored: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

# A host that is gone says nothing: without them its claims stay for two hours.
_KEEPALIVES = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(:key, 0))"


class Claims(Protocol):
    """Exclusive claims on keys. Every method may be called from any thread."""

    def claim(self, key: str) -> bool:
        """Claim a key; False when somebody else has it, here or elsewhere."""

    def release(self, key: str) -> None:
        """Give a claimed key up."""

    def close(self) -> None:
        """Give all keys up."""


class FileClaims:
    """Claims among the processes of one machine: a locked file for each key, there as long as the claim is.

    Args:
        folder: Where these files are; made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    def claim(self, key: str) -> bool:
        """See `Claims.claim`."""
        path = self._folder / key
        with self._lock:
            if key in self._held:
                return False
            self._folder.mkdir(mode=0o700, exist_ok=True)
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    return False
                if _is_still(path, descriptor):
                    self._held[key] = descriptor
                    return True
                # Whoever held it removed it between our opening and our locking it.
                os.close(descriptor)

    def release(self, key: str) -> None:
        """See `Claims.release`."""
        with self._lock:
            descriptor = self._held.pop(key, None)
            if descriptor is not None:
                (self._folder / key).unlink(missing_ok=True)
                os.close(descriptor)

    def close(self) -> None:
        """See `Claims.close`."""
        for key in list(self._held):
            self.release(key)


class PostgresClaims:
    """Claims among all that use one PostgreSQL database: advisory locks of one connection.

    When that connection breaks, the claims go with it, until any key is asked for: then they are taken again.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._held: set[str] = set()
        self._lock = threading.Lock()

    def claim(self, key: str) -> bool:
        """See `Claims.claim`."""
        with self._lock:
            if key in self._held:
                # The database lets its one session lock a key twice. It is asked whether the session still lives.
                self._ask("SELECT true", key)
                return False
            if not self._ask(_LOCK, key):
                return False
            self._held.add(key)
            return True

    def release(self, key: str) -> None:
        """See `Claims.release`."""
        with self._lock:
            if key in self._held:
                self._held.discard(key)
                with contextlib.suppress(sa.exc.OperationalError):
                    self._ask("SELECT pg_advisory_unlock(hashtextextended(:key, 0))", key)

    def close(self) -> None:
        """See `Claims.close`."""
        with self._lock:
            self._held.clear()
            if self._connection is not None:
                self._connection.invalidate()
                self._connection.close()
                self._connection = None

    def _ask(self, query: str, key: str) -> bool:
        is_new = False
        if self._connection is None or self._connection.invalidated or self._connection.closed:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            is_new = True
        try:
            if is_new:
                for name, value in _KEEPALIVES.items():
                    self._connection.execute(sa.text(f"SET {name} = {value}"))
                for held in self._held:
                    self._connection.execute(sa.text(_LOCK), {"key": held})
            return bool(self._connection.execute(sa.text(query), {"key": key}).scalar())
        except sa.exc.OperationalError:
            self._connection.close()
            self._connection = None
            if is_new:
                raise
            # The database was restarted, perhaps long ago.
            return self._ask(query, key)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
