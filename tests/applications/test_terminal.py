"""Asking on a terminal: what is typed there becomes answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.applications.conftest import Make

ENTER, DOWN, SPACE, ERASE, INTERRUPT = "\r", "\x1b[B", " ", "\x15", "\x03"


@pytest.mark.parametrize(
    ("questions", "typed", "answers"),
    [
        ("Text('x')", "grün" + ENTER, {"x": "grün"}),
        ("Text('x', default='a')", ENTER, {"x": "a"}),
        ("Text('x', default='a')", ERASE + "b" + ENTER, {"x": "b"}),
        ("Integer('x', minval=1, maxval=9)", "5" + ENTER, {"x": 5}),
        ("Integer('x', default=0)", ENTER, {"x": 0}),
        ("Integer('x', maxval=9)", "10" + ENTER + "many" + ENTER + "9" + ENTER, {"x": 9}),
        ("List('x', choices=['a', 'b'])", DOWN + ENTER, {"x": "b"}),
        ("List('x', choices=[('A', 1), ('B', 2), ('C', 3)], default=2)", ENTER, {"x": 2}),
        ("List('x', choices=[('A', 1), ('B', 2), ('C', 3)], default=2)", DOWN + ENTER, {"x": 3}),
        ("List('x', choices=[('A', 1), ('B', 2)], default='B')", ENTER, {"x": 2}),
        ("List('x', choices=[('A', True), ('B', False), ('C', None)], default=False)", ENTER, {"x": False}),
        ("Checkbox('x', choices=['a', 'b'])", DOWN + SPACE + ENTER, {"x": ["b"]}),
        ("Checkbox('x', choices=[('A', 1), ('B', 2)], default=[2])", SPACE + ENTER, {"x": [1, 2]}),
        ("Confirm('x')", "y", {"x": True}),
        ("Confirm('x', default=True)", ENTER, {"x": True}),
        ("BooleanList('x', default=False, whentrue=[Text('y')])", "yz" + ENTER, {"x": True, "y": "z"}),
        ("File('x')", "a.txt" + ENTER, {"x": "a.txt"}),
        ("Const('x', 1), Text('y')", "z" + ENTER, {"y": "z"}),
    ],
)
def test_what_is_typed_is_the_answer(make: Make, questions: str, typed: str, answers: dict[str, object]) -> None:
    application = make(questions)

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(typed)
        assert application.interview() == answers


def test_an_interrupt_ends_the_interview(make: Make) -> None:
    application = make("Text('x')")

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(INTERRUPT)
        with pytest.raises(KeyboardInterrupt):
            application.interview()


def test_a_directory_is_asked_for_again_until_it_is_there(make: Make, tmp_path: Path) -> None:
    # An empty one: there is nothing in it to complete to, which the first Enter would choose.
    empty = tmp_path / "empty"
    empty.mkdir()
    application = make("Directory('x', exists=True)")

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(f"/nowhere{ENTER}{empty}/{ENTER}")
        assert application.interview() == {"x": str(empty)}
