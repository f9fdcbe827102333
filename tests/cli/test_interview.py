"""The interview on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path

from tests.cli.command_line import COMMAND, application

_CURSOR = "\x1b[?25h"
_SECONDS = 60
QUESTIONS = """
Text("name", "Whose name?"),
Integer("steps", "How many steps?", minval=1, maxval=9, default=3),
Confirm("again", "Once more?", default=False),
"""


class Terminal:
    """The command on a terminal of its own, with a person who reads and types."""

    def __init__(self, *arguments: str | Path) -> None:
        self._screen, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={**os.environ, "TERM": "dumb", "PROMPT_TOOLKIT_NO_CPR": "1"},
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

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=60)
        os.close(self._screen)
        return self.process.returncode, out.decode()


def test_questions_are_asked_and_asked_again_after_a_bad_answer(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo {{ name }} {{ steps }} {{ again }}", QUESTIONS)
    terminal = Terminal("app", "render", folder)

    terminal.answer("Whose name?", "Ada\r")
    terminal.answer("How many steps?", "\x7f12\r")
    terminal.read("'12' is more than the maximum of 9")
    terminal.answer("How many steps?", "\x7f5\r")
    terminal.answer("Once more?", "y")

    code, out = terminal.end()
    assert code == 0
    assert out.endswith("echo Ada 5 True\n")


def test_what_was_answered_is_not_asked(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo {{ name }} {{ steps }} {{ again }}", QUESTIONS)
    terminal = Terminal("app", "render", folder, "--answer", "name=Ada", "--answer", "steps=4")

    terminal.answer("Once more?", "n")

    assert terminal.end()[1].endswith("echo Ada 4 False\n")


def test_giving_up_is_an_interrupt(tmp_path: Path) -> None:
    terminal = Terminal("app", "render", application(tmp_path / "app", "echo {{ name }}", QUESTIONS))

    terminal.answer("Whose name?", "\x03")

    assert terminal.end() == (130, "")


def test_nothing_is_asked_on_a_terminal_when_told_so(tmp_path: Path) -> None:
    terminal = Terminal("app", "render", application(tmp_path / "app", "echo {{ name }}", QUESTIONS), "--no-input")

    terminal.read("Error: ")

    assert terminal.end()[0] == 3
