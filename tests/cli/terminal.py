"""The installed command on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.cli.command_line import COMMAND

_CURSOR = "\x1b[?25h"
_SECONDS = 60


class Terminal:
    """The command on a terminal of its own, with a person who reads and types."""

    def __init__(self, *arguments: str | Path, kind: str = "dumb", env: Mapping[str, str] | None = None) -> None:
        self._screen, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={**os.environ, "TERM": kind, "PROMPT_TOOLKIT_NO_CPR": "1", **(env or {})},
            start_new_session=True,
        )
        os.close(terminal)
        self.seen = ""

    def answer(self, question: str, text: str) -> None:
        self.read(question)
        # A question that listens shows its cursor; what is typed while there is none may be lost.
        self.read(_CURSOR)
        os.write(self._screen, text.encode())

    def read(self, text: str) -> None:
        """Read on until the text is on the screen."""
        while text not in self.seen:
            assert select.select([self._screen], [], [], _SECONDS)[0], (
                f"{text!r} did not come; on the screen: {self.seen!r}"
            )
            self.seen += os.read(self._screen, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def read_all(self) -> str:
        """Read on until the command has ended."""
        # What a terminal says whose last user has left it.
        with contextlib.suppress(OSError):
            self.read("\0")
        return self.seen

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=60)
        os.close(self._screen)
        return self.process.returncode, out.decode()
