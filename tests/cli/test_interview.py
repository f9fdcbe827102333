"""The interview on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
from pathlib import Path

import pytest

from tests.cli.command_line import COMMAND, application, run

_CURSOR = "\x1b[?25h"
_SECONDS = 60
QUESTIONS = """
Text("name", "Whose name?"),
Integer("steps", "How many steps?", minval=1, maxval=9, default=3),
Confirm("again", "Once more?", default=False),
"""


class Terminal:
    """The command on a terminal of its own, with a person who reads and types."""

    def __init__(self, *arguments: str | Path, kind: str = "dumb") -> None:
        self._screen, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={**os.environ, "TERM": kind, "PROMPT_TOOLKIT_NO_CPR": "1"},
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


@pytest.mark.parametrize("answers", ["--fast", "--answers"])
@pytest.mark.parametrize("command", ["render", "run"])
def test_with_the_defaults_or_a_file_of_answers_nothing_is_asked_on_a_terminal(
    tmp_path: Path, command: str, answers: str
) -> None:
    questions = 'Text("name", "Whose name?", default="Eve"), Integer("steps", "How many steps?", default=3)'
    folder = application(tmp_path / "app", "echo {{ name }} {{ steps }}", questions)
    (tmp_path / "answers.json").write_text(json.dumps({"name": "Ada"}))
    given = {"--fast": ["--fast"], "--answers": ["--answers", f"{tmp_path}/answers.json"]}[answers]
    here = {"render": [], "run": ["--cluster=local", f"--directory={tmp_path}"]}[command]
    terminal = Terminal("app", command, folder, *given, *here)

    screen = terminal.read_all()
    code, out = terminal.end()

    name = {"--fast": "Eve", "--answers": "Ada"}[answers]
    assert code == 0, screen
    assert "?" not in screen
    assert out.endswith({"render": f"echo {name} 3\n", "run": f"{name} 3\n"}[command])


def test_a_missing_answer_beside_a_file_of_answers_is_an_error_and_no_question(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo {{ name }}", QUESTIONS)
    (tmp_path / "answers.json").write_text(json.dumps({"steps": 4}))
    terminal = Terminal("app", "render", folder, "--answers", tmp_path / "answers.json")

    terminal.read("Error: answers.name: ")

    assert terminal.end() == (3, "")


def test_progress_is_shown_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo", QUESTIONS)
    terminal = Terminal("app", "check", folder, kind="xterm")

    assert "Checking the application" in terminal.read_all()
    code, out = terminal.end()
    assert code == 0
    ended = run("app", "check", folder)
    assert (ended.out, ended.err) == (out, "")
    assert "Checking" not in out
