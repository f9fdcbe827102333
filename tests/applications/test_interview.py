"""The interview: which questions are asked, in which order, and what comes of the answers."""

from __future__ import annotations

import datetime
import enum
import logging
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.applications import (
    BadAnswer,
    InterviewError,
    LoadingError,
    MissingAnswer,
    Question,
    UnknownAnswer,
)
from tests.applications.conftest import SHOWN, Make, parameters

STEPS = """
    def mainflow(self, data):
        data["nextworkflow"] = "solver"
        return [List("method", "Method", choices=["direct", "iterative"], default="direct")]

    def solver(self, data):
        if data["method"] == "direct":
            return []
        data["nextworkflow"] = "tolerance"
        return [Integer("iterations", "Most iterations of {method}", default=100)]

    def tolerance(self, data):
        data["nextworkflow"] = None
        data["cost"] = data["iterations"] * 2
        return [Text("tolerance", "Tolerance", default="1e-{iterations}")]
"""

NESTED = """BooleanList("colour", "Colour?", default=False,
    whentrue=[
        Text("palette", "Palette", default="fire"),
        BooleanList("frame", "Frame?", default=True, whentrue=[Integer("width", "Width", default=4)],
                    whenfalse=[Text("reason", "Why not?")]),
    ],
    whenfalse=[Confirm("invert", "Invert?", default=True), Integer("width", "Width", default=1)])"""


class Person:
    """Answers questions, and remembers them with the complaints about the answers before."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Question] = []
        self.complaints: list[str | None] = []

    def __call__(self, question: Question, complaint: str | None) -> Any:
        self.asked.append(question)
        self.complaints.append(complaint)
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        ({}, {"method": "direct"}),
        ({"method": "direct"}, {"method": "direct"}),
        ({"method": "iterative"}, {"method": "iterative", "iterations": 100, "tolerance": "1e-100", "cost": 200}),
        (
            {"method": "iterative", "iterations": 5, "tolerance": "0.1"},
            {"method": "iterative", "iterations": 5, "tolerance": "0.1", "cost": 10},
        ),
    ],
)
def test_the_steps_follow_nextworkflow(make: Make, answers: dict[str, Any], result: dict[str, Any]) -> None:
    assert parameters(make(steps=STEPS, script=SHOWN), answers) == result


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        ({}, {"colour": False, "invert": True, "width": 1, "palette": "fire", "frame": True}),
        ({"width": 7}, {"colour": False, "invert": True, "width": 7, "palette": "fire", "frame": True}),
        ({"colour": True}, {"colour": True, "palette": "fire", "frame": True, "width": 4, "invert": True}),
        (
            {"colour": True, "frame": "no", "reason": "ugly"},
            {"colour": True, "palette": "fire", "frame": False, "reason": "ugly", "width": 4, "invert": True},
        ),
    ],
)
def test_the_children_of_a_booleanlist_keep_their_defaults_in_every_mode(
    make: Make, answers: dict[str, Any], result: dict[str, Any]
) -> None:
    application = make(NESTED, script=SHOWN)

    assert parameters(application, answers) == result
    assert parameters(application, application.interview(answers, fast=True, ask=Person())) == result


def test_the_children_of_the_branch_that_is_taken_need_answers(make: Make) -> None:
    application = make(NESTED)

    with pytest.raises(MissingAnswer, match="'reason'"):
        application.render({"colour": True, "frame": False})


@pytest.mark.parametrize(
    ("ignore", "answers", "result"),
    [
        ("True", {}, 3),
        ("False", {}, 3),
        ("True", {"x": 5}, 5),
        ("False", {"x": 5}, 5),
        ("lambda answers: answers['fine']", {"fine": True}, 3),
        ("lambda answers: answers['fine']", {"fine": False, "x": 5}, 5),
    ],
)
def test_an_ignored_question_has_its_default_if_nothing_else_is_said(
    make: Make, ignore: str, answers: dict[str, Any], result: int
) -> None:
    application = make(f"Confirm('fine', default=True), Integer('x', default=3, ignore={ignore})", script=SHOWN)

    assert parameters(application, answers)["x"] == result


@pytest.mark.parametrize(
    ("before", "answers", "result"),
    [("Integer('x')", {"x": 8}, 8), ("Integer('x', default=7)", {}, 7), ("Const('x', 6)", {}, 6)],
)
def test_an_ignored_question_has_the_answer_to_an_earlier_one_of_its_name(
    make: Make, before: str, answers: dict[str, Any], result: int
) -> None:
    application = make(f"{before}, Integer('x', default=3, ignore=True)", script=SHOWN)

    assert parameters(application, answers)["x"] == result


def test_an_ignored_question_without_a_default_is_none_and_is_not_missing(make: Make) -> None:
    assert parameters(make("Integer('x', ignore=True)", script=SHOWN))["x"] is None


def test_an_ignored_booleanlist_ignores_its_children(make: Make) -> None:
    questions = "BooleanList('b', ignore=True, default=True, whentrue=[Integer('x'), Integer('y', default=2)])"

    assert parameters(make(questions, script=SHOWN)) == {"b": True, "y": 2}


def test_a_default_that_only_its_own_branch_can_tell_does_no_harm_in_the_other(make: Make) -> None:
    questions = (
        "BooleanList('b', default=False, whentrue=[Integer('x'), Integer('y', default=lambda answers: answers['x'])])"
    )

    assert parameters(make(questions, script=SHOWN)) == {"b": False}


def test_the_answers_lie_over_the_configuration_and_that_over_the_applications_variables(make: Make) -> None:
    application = make(
        "Text('c', default='answer')",
        script=SHOWN,
        config="jobbergate_config: {default_template: job.sh.j2, b: configured, c: configured}\n"
        "application_config: {a: variable, b: variable, c: variable}\n",
    )

    assert parameters(application) == {"a": "variable", "b": "configured", "c": "answer"}


def test_values_of_the_yaml_are_what_yaml_says(make: Make) -> None:
    application = make(
        script="{{ day.year }} {{ sizes[4] }} {{ none }} {{ text }} {{ self_made }}",
        config="jobbergate_config: {default_template: job.sh.j2, day: 2026-11-21}\n"
        "application_config: {sizes: {4: small}, none: null, text: 'grün', self_made: !!set {a}}\n",
    )

    assert application.render().text.splitlines()[-1] == "2026 small None grün {'a'}"


def test_one_run_leaves_nothing_to_the_next(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                data["seen"].append("here")
                self.application_config["n"] += 1
                return []
        """,
        script=SHOWN,
        config="jobbergate_config: {default_template: job.sh.j2, seen: []}\napplication_config: {n: 0}\n",
    )
    application.describe()

    assert parameters(application) == parameters(application) == {"seen": ["here"], "n": 1}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("iteration", "did you mean 'iterations'?"),
        ("zzz", "the questions are iterations, method, tolerance"),
        ("minutes", "it is a variable of jobbergate.yaml that no question asks for: change it there"),
        ("cost", "the questions are iterations, method, tolerance"),
    ],
)
def test_an_answer_to_no_question_is_refused(make: Make, name: str, hint: str) -> None:
    application = make(
        steps=STEPS, config="jobbergate_config: {default_template: job.sh.j2}\napplication_config: {minutes: 5}\n"
    )

    for value in (1, None):
        with pytest.raises(UnknownAnswer, match=f"no question '{name}'") as caught:
            application.render({name: value})
        assert (caught.value.where, caught.value.hint) == (f"answers.{name}", hint)


def test_an_answer_to_a_question_of_another_branch_is_no_mistake(make: Make) -> None:
    application = make(steps=STEPS, script=SHOWN)

    assert parameters(application, {"method": "direct", "iterations": 5}) == {"method": "direct"}


def test_a_step_that_returns_none_is_warned_of(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    application = make(steps="def mainflow(self, data):\n    data['x'] = 1", script=SHOWN)

    with caplog.at_level(logging.WARNING):
        assert parameters(application) == {"x": 1}
    assert "jobbergate.py: mainflow returned None instead of a list of questions" in caplog.text


@pytest.mark.parametrize("signature", ["self, data", "self, data=None", "self, *_, **__", "self, *, data"])
def test_a_step_may_take_its_data_in_any_way(make: Make, signature: str) -> None:
    application = make(steps=f"def mainflow({signature}):\n    return (Text('x', default='a'),)", script=SHOWN)

    assert parameters(application) == {"x": "a"}


@pytest.mark.parametrize(
    ("steps", "error", "where", "message"),
    [
        ("def mainflow(self, data):\n    return data['no']", InterviewError, "jobbergate.py:6", "KeyError: 'no'"),
        (
            "def mainflow(self, data):\n    raise ValueError('no\\nstation')",
            InterviewError,
            "jobbergate.py:6",
            "no station",
        ),
        ("def mainflow(self, data):\n    return Text('x')", LoadingError, "jobbergate.py", "returned Text, not a list"),
        ("def mainflow(self, data):\n    return 'x'", LoadingError, "jobbergate.py", "returned str, not a list"),
        ("def mainflow(self, data):\n    return 5", InterviewError, "jobbergate.py", "mainflow failed: TypeError"),
        (
            "def mainflow(self, data):\n    data['nextworkflow'] = 'gone'\n    return []",
            LoadingError,
            "jobbergate.py",
            "names 'gone', which is no method",
        ),
        (
            "def mainflow(self, data):\n    data['nextworkflow'] = 'mainflow'\n    return []",
            InterviewError,
            "jobbergate.py",
            "more than 1000 steps",
        ),
        (
            "def mainflow(self, data):\n    return self.mainflow(data)",
            InterviewError,
            "jobbergate.py:6",
            "RecursionError",
        ),
        ("def mainflow(self, data):\n    import helper\n    helper.fail()", InterviewError, "helper.py:2", "broken"),
    ],
)
def test_a_step_that_fails_is_told_with_its_line(
    make: Make, steps: str, error: type[Exception], where: str, message: str
) -> None:
    application = make(steps=steps, files={"helper.py": "def fail():\n    raise ValueError('broken')\n"})

    with pytest.raises(error, match=message) as caught:
        application.render()
    assert str(caught.value).startswith(f"{where}: ")
    assert "\n" not in str(caught.value)


def test_an_application_may_name_its_own_modules_as_it_likes(make: Make) -> None:
    names = ["questions", "interview", "schema", "rendering", "service", "problem", "errors", "child", "shims"]
    application = make(
        steps=f"def mainflow(self, data):\n    import {', '.join(names)}\n    data['x'] = questions.x\n    return []",
        script=SHOWN,
        files={f"{name}.py": "x = 'own'\n" for name in names},
    )

    assert parameters(application) == {"x": "own"}


class Count(enum.IntEnum):
    ONE = 1


class Kind(enum.StrEnum):
    DIRECT = "direct"


@pytest.mark.parametrize(
    ("question", "given", "answer"),
    [
        ("List('x', choices=['direct'])", Kind.DIRECT, "direct"),
        ("Integer('x')", Count.ONE, 1),
        ("File('x')", Path("a/b"), "a/b"),
        ("Text('x')", datetime.date(2026, 11, 21), "2026-11-21"),
        ("Checkbox('x', choices=['a', 'b'])", ("b", "a"), ["b", "a"]),
        ("Checkbox('x', choices=['a'])", {"a"}, ["a"]),
    ],
)
def test_answers_may_be_what_python_and_yaml_make_of_them(make: Make, question: str, given: Any, answer: Any) -> None:
    assert parameters(make(question, script=SHOWN), {"x": given}) == {"x": answer}


@pytest.mark.parametrize("given", [object(), b"bytes", lambda: 5, [object()], {"a": 1j}])
def test_what_is_no_answer_at_all_is_refused(make: Make, given: Any) -> None:
    application = make("Text('x')")

    for use in (application.render, lambda answers: application.interview(answers, ask=Person())):
        with pytest.raises(BadAnswer, match="is no answer") as caught:
            use({"x": given})
        assert caught.value.where == "answers.x"


def test_a_person_is_asked_what_is_open_with_everything_that_a_prompt_needs(make: Make) -> None:
    application = make(
        steps=STEPS.replace('choices=["direct", "iterative"]', 'choices=[("Slow", "direct"), "iterative"]')
    )
    person = Person("iterative", None, "1e-3")

    answers = application.interview(ask=person)

    assert answers == {"method": "iterative", "iterations": 100, "tolerance": "1e-3"}
    assert person.asked == [
        Question("List", "method", "Method", "direct", (("Slow", "direct"), ("iterative", "iterative"))),
        Question("Integer", "iterations", "Most iterations of iterative", 100),
        Question("Text", "tolerance", "Tolerance", "1e-100"),
    ]


def test_a_person_is_asked_again_after_a_bad_answer_with_what_was_wrong(make: Make) -> None:
    application = make("Integer('x', 'How many?', minval=1, maxval=9)")
    person = Person("many", 10, None, "3")

    assert application.interview(ask=person) == {"x": 3}
    assert person.complaints == [
        None,
        "'many' is no whole number",
        "10 is more than the maximum of 9",
        "None is no whole number",
    ]
    assert person.asked[0] == Question("Integer", "x", "How many?", minimum=1, maximum=9)


def test_a_person_is_asked_only_for_what_has_no_default_when_it_is_fast(make: Make) -> None:
    application = make("Integer('x', default=1), Text('y'), Text('z', default='z')")
    person = Person("why")

    assert application.interview({"z": "given"}, fast=True, ask=person) == {"z": "given", "y": "why"}
    assert [question.variable for question in person.asked] == ["y"]


def test_an_answer_that_is_given_is_not_asked_for_and_refused_when_it_is_bad(make: Make) -> None:
    application = make("Integer('x'), Text('y', default='y')")

    with pytest.raises(BadAnswer, match="'many' is no whole number"):
        application.interview({"x": "many"}, ask=Person())
    with pytest.raises(UnknownAnswer, match="'z'"):
        application.interview({"x": 1, "y": "", "z": 1}, ask=Person())


def test_what_a_person_answered_renders_the_same_later(make: Make) -> None:
    application = make(NESTED, script=SHOWN)
    answers = application.interview(ask=Person("yes", "ice", False, "because"))

    assert answers == {"colour": True, "palette": "ice", "frame": False, "reason": "because"}
    assert parameters(application, answers) == answers | {"invert": True, "width": 4}


def test_who_gives_up_ends_the_interview(make: Make) -> None:
    def give_up(question: Question, complaint: str | None) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("Text('x')").interview(ask=give_up)
