"""The interview on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command_line import application, run
from tests.cli.terminal import Terminal

QUESTIONS = """
Text("name", "Whose name?"),
Integer("steps", "How many steps?", minval=1, maxval=9, default=3),
Confirm("again", "Once more?", default=False),
"""


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
