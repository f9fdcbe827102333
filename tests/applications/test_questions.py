"""The question types: what each takes as an answer, and what it says of the others."""

from __future__ import annotations

from typing import Any

import pytest

from jobbergate_flows.applications import BadAnswer, InterviewError, LoadingError, MissingAnswer
from tests.applications.conftest import SHOWN, Make, parameters


@pytest.mark.parametrize(
    ("question", "given", "answer"),
    [
        ("Text('x')", "grün", "grün"),
        ("Text('x')", "", ""),
        ("Text('x')", 5, "5"),
        ("Text('x')", 0.5, "0.5"),
        ("Integer('x')", 5, 5),
        ("Integer('x')", "5", 5),
        ("Integer('x')", " -5 ", -5),
        ("Integer('x')", 5.0, 5),
        ("Integer('x', minval=1, maxval=3)", 1, 1),
        ("Integer('x', minval=1, maxval=3)", "3", 3),
        ("Integer('x', minval=0)", 10**30, 10**30),
        ("List('x', choices=['a', 'b'])", "b", "b"),
        ("List('x', choices=[('one', 1), ('two', 2)])", 2, 2),
        ("List('x', choices=[('one', 1), ('two', 2)])", "2", 2),
        ("List('x', choices=[('one', 1), ('two', 2)])", "two", 2),
        ("List('x', choices=[('2', 1), ('1', 2)])", "1", 1),
        ("List('x', choices=[True, 1])", 1, 1),
        ("List('x', choices=[1, True])", True, True),
        ("List('x', choices=lambda answers: ['a', 'b'])", "a", "a"),
        ("Checkbox('x', choices=['a', 'b', 'c'])", ["c", "a"], ["c", "a"]),
        ("Checkbox('x', choices=['a', 'b', 'c'])", [], []),
        ("Checkbox('x', choices=['a', 'b', 'c'])", "a, c", ["a", "c"]),
        ("Checkbox('x', choices=['a, b', 'c'])", "a, b", ["a, b"]),
        ("Checkbox('x', choices=[('one', 1), ('two', 2)])", ["two", "1", 2], [2, 1]),
        ("Confirm('x')", True, True),
        ("Confirm('x')", "no", False),
        ("Confirm('x')", "True", True),
        ("Confirm('x')", "Y", True),
        ("Confirm('x')", 0, False),
        ("BooleanList('x', whentrue=[])", "yes", True),
        ("Directory('x')", "not/there", "not/there"),
        ("Directory('x', exists=True)", "/", "/"),
        ("Directory('x', exists=True)", "~", "~"),
        ("Directory('x', exists=False)", "/not/there", "/not/there"),
        ("File('x', exists=True)", "/etc/passwd", "/etc/passwd"),
        ("File('x')", "/not/there", "/not/there"),
    ],
)
def test_an_answer_is_taken(make: Make, question: str, given: Any, answer: Any) -> None:
    taken = parameters(make(question, script=SHOWN), {"x": given})["x"]

    assert (taken, type(taken)) == (answer, type(answer))


@pytest.mark.parametrize(
    ("question", "given", "message"),
    [
        ("Text('x')", True, "True is no text"),
        ("Text('x')", ["a"], "['a'] is no text"),
        ("Text('x')", "a\nrm -rf /", "is more than one line"),
        ("Text('x')", "a\0", "is more than one line"),
        ("Integer('x')", "five", "'five' is no whole number"),
        ("Integer('x')", "", "'' is no whole number"),
        ("Integer('x')", 5.5, "5.5 is no whole number"),
        ("Integer('x')", float("inf"), "inf is no whole number"),
        ("Integer('x')", "1_000", "'1_000' is no whole number"),
        ("Integer('x')", True, "True is no whole number"),
        ("Integer('x')", [1], "[1] is no whole number"),
        ("Integer('x')", "9" * 5000, "is no whole number"),
        ("Integer('x', minval=1)", 0, "0 is less than the minimum of 1"),
        ("Integer('x', maxval=3)", "4", "'4' is more than the maximum of 3"),
        ("Integer('x', minval=0, maxval=0)", -1, "-1 is less than the minimum of 0"),
        ("List('x', choices=['a', 'b'])", "c", "'c' is none of a, b"),
        ("List('x', choices=[])", "c", "'c' is none of no choices"),
        ("List('x', choices=[('one', 1)])", True, "True is none of 1"),
        ("Checkbox('x', choices=['a', 'b'])", ["a", "c"], "holds 'c', which is none of a, b"),
        ("Checkbox('x', choices=['a', 'b'])", 5, "5 is no list"),
        ("Checkbox('x', choices=['a', 'b'])", {"a": 1}, "is no list"),
        ("Confirm('x')", "perhaps", "'perhaps' is neither yes nor no"),
        ("Confirm('x')", 2, "2 is neither yes nor no"),
        ("Confirm('x')", 1.0, "1.0 is neither yes nor no"),
        ("BooleanList('x', whentrue=[])", [], "[] is neither yes nor no"),
        ("Directory('x')", 5, "5 is no path"),
        ("Directory('x', exists=True)", "/not/there", "is no directory that exists on this machine"),
        ("Directory('x')", "/etc/passwd", "is no directory"),
        ("Directory('x', exists=False)", "/", "'/' exists already"),
        ("File('x', exists=True)", "/not/there", "is no file that exists on this machine"),
        ("File('x')", "/", "'/' is no file"),
        ("File('x')", "a\nb", "is more than one line"),
    ],
)
def test_a_wrong_answer_is_refused_with_the_questions_name_and_message(
    make: Make, question: str, given: Any, message: str
) -> None:
    application = make(question.replace("'x'", "'x', 'How many?'"))

    with pytest.raises(BadAnswer) as caught:
        application.render({"x": given})

    assert message in caught.value.message
    assert len(caught.value.message) < 200
    assert caught.value.where == "answers.x"
    assert "How many?" in str(caught.value.hint)


@pytest.mark.parametrize(
    "question",
    ["Text('x')", "Integer('x')", "List('x', choices=[1])", "Checkbox('x', choices=[1])", "Confirm('x')",
     "Directory('x')", "File('x')", "BooleanList('x', whentrue=[])", "Text('x', default=lambda answers: None)"],
)  # fmt: skip
@pytest.mark.parametrize("answers", [{}, {"x": None}])
def test_a_missing_answer_without_a_default_names_the_question(
    make: Make, question: str, answers: dict[str, Any]
) -> None:
    application = make(question.replace("'x'", "'x', 'How many?'"))

    with pytest.raises(MissingAnswer, match=r"'x' \(How many\?\)") as caught:
        application.render(answers)
    assert caught.value.where == "answers.x"
    assert "x=" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("default", "answer"),
    [("'a'", "a"), ("'{y}-{z}'", "1-b"), ("'{nothing} ${HOME}'", "{nothing} ${HOME}"), ("''", ""),
     ("lambda answers: answers['z'] * 2", "bb"), ("lambda answers: '{y}'", "{y}")],
)  # fmt: skip
def test_a_default_may_depend_on_the_answers_before(make: Make, default: str, answer: str) -> None:
    application = make(f"Integer('y', default=1), Text('z', default='b'), Text('x', default={default})", script=SHOWN)

    assert parameters(application)["x"] == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Integer('x', default='7')", 7),
        ("Integer('x', default=0)", 0),
        ("List('x', choices=[('one', 1)], default='one')", 1),
        ("Checkbox('x', choices=['a', 'b'], default=['b'])", ["b"]),
        ("Confirm('x', default=False)", False),
        ("Const('x', default='c')", "c"),
        ("Const('x', 'c')", "c"),
        ("Const('x', default=[1, {'a': 2}])", [1, {"a": 2}]),
        ("Const('x', default=lambda answers: 5)", 5),
    ],
)
def test_a_default_is_the_answer_of_who_gives_none(make: Make, question: str, answer: Any) -> None:
    assert parameters(make(question, script=SHOWN))["x"] == answer


def test_a_default_that_is_no_answer_is_told_as_such(make: Make) -> None:
    with pytest.raises(BadAnswer, match=r"'c', its default, is none of a, b"):
        make("List('x', 'Which?', choices=['a', 'b'], default='c')").render()


@pytest.mark.parametrize(
    ("questions", "error", "where", "message"),
    [
        ("Text('x', minimum=3)", InterviewError, "jobbergate.py:6", "unexpected keyword argument 'minimum'"),
        ("Text('x', default=lambda a: a['y'])", InterviewError, "jobbergate.py:6", "'x' failed: KeyError: 'y'"),
        ("List('x', choices=5)", InterviewError, "jobbergate.py", "'x' failed: TypeError"),
        ("'x'", LoadingError, "jobbergate.py", "'x' is no question"),
        ("BooleanList('x', default=True, whentrue=[5])", LoadingError, "jobbergate.py", "5 is no question"),
    ],
)
def test_a_question_that_is_wrong_itself_is_told_with_its_line(
    make: Make, questions: str, error: type[Exception], where: str, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        make(questions).render()
    assert str(caught.value).startswith(f"{where}: ")


def test_a_path_below_the_home_directory_is_looked_for_there(make: Make) -> None:
    # Not in the temporary copy of the application, which is where its process runs.
    with pytest.raises(BadAnswer, match="is no file that exists"):
        make("File('x', exists=True)").render({"x": "~/jobbergate.yaml"})
