"""The form: the questions as a JSON Schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from jobbergate_flows.applications import Application, InterviewError, LoadingError
from tests.applications.conftest import Make

EXAMPLES = Path(__file__).parents[2] / "examples"


def form(application: Application) -> dict[str, Any]:
    """The form, which is a valid schema whose defaults are valid answers."""
    schema = application.describe().form
    Draft202012Validator.check_schema(schema)
    for name, entry in schema["properties"].items():
        if "default" in entry:
            assert valid(schema, {name: entry["default"]}, required=False)
    return schema


def valid(schema: dict[str, Any], answers: dict[str, Any], *, required: bool = True) -> bool:
    used = schema if required else {**schema, "required": []}
    return bool(Draft202012Validator(used).is_valid(answers))


@pytest.mark.parametrize(
    ("question", "entry"),
    [
        ("Text('x', 'Who?')", {"title": "Who?", "type": "string"}),
        ("Text('x')", {"title": "x", "type": "string"}),
        ("Text('x', 'Who?', default='me')", {"title": "Who?", "type": "string", "default": "me"}),
        ("Text('x', 'Who?', default=5)", {"title": "Who?", "type": "string", "default": "5"}),
        ("Integer('x', 'N')", {"title": "N", "type": "integer"}),
        (
            "Integer('x', 'N', minval=0, maxval=9, default='3')",
            {"title": "N", "type": "integer", "minimum": 0, "maximum": 9, "default": 3, "description": "From 0 to 9."},
        ),
        (
            "Integer('x', 'N', maxval=9, default=10)",
            {"title": "N", "type": "integer", "maximum": 9, "description": "At most 9."},
        ),
        (
            "List('x', 'L', choices=['a', 'b'], default='b')",
            {"title": "L", "type": "string", "enum": ["a", "b"], "default": "b"},
        ),
        (
            "List('x', 'L', choices=[('One', 1), ('Two', 2), ('3', 3)], default='Two')",
            {"title": "L", "type": "integer", "enum": [1, 2, 3], "default": 2, "description": "- 1: One\n\n- 2: Two"},
        ),
        ("List('x', 'L', choices=['a', 1, None, 0.5])", {"title": "L", "enum": ["a", 1, None, 0.5]}),
        ("List('x', 'L', choices=[])", {"title": "L", "enum": []}),
        (
            "Checkbox('x', 'C', choices=['a', ('B', 'b')], default=['a'])",
            {
                "title": "C",
                "type": "array",
                "items": {"type": "string", "enum": ["a", "b"]},
                "uniqueItems": True,
                "default": ["a"],
                "description": "- b: B",
            },
        ),
        ("Confirm('x', 'Sure?', default=False)", {"title": "Sure?", "type": "boolean", "default": False}),
        ("BooleanList('x', 'B?', default=True, whentrue=[])", {"title": "B?", "type": "boolean", "default": True}),
        (
            "Directory('x', 'D', exists=True, default='/not/here')",
            {"title": "D", "type": "string", "default": "/not/here"},
        ),
        ("File('x', 'F')", {"title": "F", "type": "string"}),
        (
            "Text('x', 'For {y}', default='{y}!')",
            {"title": "For <y>", "type": "string", "description": "Its default depends on other answers."},
        ),
        (
            "Integer('x', 'N', default=lambda answers: 5)",
            {"title": "N", "type": "integer", "description": "Its default depends on other answers."},
        ),
        ("Text('x', 'grün {', default='{')", {"title": "grün {", "type": "string", "default": "{"}),
    ],
)
def test_a_question_becomes_a_property(make: Make, question: str, entry: dict[str, Any]) -> None:
    schema = form(make(f"Text('y', default='you'), {question}"))

    assert schema["properties"]["x"] == {**entry, "position": 1}
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)


def test_the_properties_are_in_the_order_in_which_they_are_asked(make: Make) -> None:
    properties = form(make("Text('z'), BooleanList('b', whentrue=[Text('c')]), Text('a')"))["properties"]

    assert [(name, entry["position"]) for name, entry in properties.items()] == [("z", 0), ("b", 1), ("c", 2), ("a", 3)]


def test_what_is_always_asked_and_has_no_default_is_required(make: Make) -> None:
    schema = form(
        make(
            "Text('a'), Text('b', default=''), Const('c', 1), Text('d', ignore=True),"
            "BooleanList('e', whentrue=[Text('f')]),"
            "Text('g', ignore=lambda answers: False), Text('h', default=lambda answers: answers['a'])"
        )
    )

    assert list(schema["properties"]) == ["a", "b", "e", "f", "g", "h"]
    assert schema["required"] == ["a", "e"]
    assert "required" not in form(make("Text('b', default='')"))


@pytest.mark.parametrize(
    ("questions", "notes"),
    [
        ("BooleanList('b', whentrue=[Text('x')], whenfalse=[Text('y')])",
         {"x": 'Applies when "b" is yes.', "y": 'Applies when "b" is no.'}),
        ("BooleanList('b', whentrue=[BooleanList('c', default=False, whentrue=[Text('x')])])",
         {"c": 'Applies when "b" is yes.', "x": 'Applies when "c" is yes.'}),
        ("BooleanList('b', whentrue=[Text('x')], whenfalse=[Text('x')])", {"x": None}),
        ("List('b', choices=['u', 'v', 'w']), Text('x', ignore=lambda a: a['b'] != 'v')",
         {"x": 'Applies when "b" is v.'}),
        ("List('b', choices=['u', 'v', 'w']), Text('x', ignore=lambda a: a['b'] == 'v')",
         {"x": 'Applies unless "b" is v.'}),
        ("List('b', choices=[1, 2, 3, 4]), Text('x', ignore=lambda a: a['b'] > 2)",
         {"x": 'Applies when "b" is 1 or 2.'}),
        ("Confirm('a', default=True), Confirm('b'), Text('x', ignore=lambda a: a['b'])",
         {"x": 'Applies when "b" is no.'}),
        ("Confirm('a'), Confirm('b'), Text('x', ignore=lambda a: not (a['a'] and a['b']))",
         {"x": "Applies to some answers only."}),
        ("Confirm('a'), List('x', choices=lambda a: [1, 2] if a['a'] else [2, 3])", {"x": None}),
    ],
)  # fmt: skip
def test_a_question_behind_a_branch_is_optional_and_says_when_it_applies(
    make: Make, questions: str, notes: dict[str, str | None]
) -> None:
    schema = form(make(questions))

    assert {name: schema["properties"][name].get("description") for name in notes} == notes
    assert not {name for name, note in notes.items() if note} & set(schema.get("required", []))


def test_a_question_that_only_a_number_brings_up_can_be_answered(make: Make) -> None:
    application = make(
        "Integer('n', default=1), Integer('more', 'More', minval=2, ignore=lambda a: a['n'] < 5), Text('last')",
        script="{{ more }}",
    )
    schema = form(application)

    assert schema["properties"]["more"] == {
        "title": "More",
        "description": "Applies to some answers only. At least 2.",
        "type": "integer",
        "minimum": 2,
        "position": 1,
    }
    assert schema["required"] == ["last"]
    assert valid(schema, {"n": 7, "more": 3, "last": "x"})
    assert application.render({"n": 7, "more": 3, "last": "x"}).text.endswith("\n3\n")
    assert application.render({"n": 1, "last": "x"}).text.endswith("\nNone\n")


def test_the_steps_are_followed_into_every_branch(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                data["nextworkflow"] = "second"
                return [List("kind", "Kind", choices=["a", "b"], default="a")]

            def second(self, data):
                if data["kind"] == "a":
                    return [Integer("n", "N", minval=1, maxval=5, default=1), Text("word", default="x")]
                data["nextworkflow"] = "third"
                return [Integer("n", "N", minval=0, maxval=3, default=2)]

            def third(self, data):
                return [Text("more", default="x")]
        """
    )
    schema = form(application)

    assert list(schema["properties"]) == ["kind", "n", "more", "word"]
    assert schema["properties"]["n"] == {
        "title": "N", "type": "integer", "minimum": 0, "maximum": 5, "position": 1,
        "description": "From 0 to 5. Its default depends on other answers.",
    }  # fmt: skip
    assert schema["properties"]["more"]["description"] == 'Applies when "Kind" is b.'
    assert application.describe().complete


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ("List('x', choices=['u'])", "List('x', choices=['v', 'u'])", {"type": "string", "enum": ["u", "v"]}),
        ("List('x', choices=['u'])", "List('x', choices=[1])", {"enum": ["u", 1]}),
        ("Integer('x', minval=1)", "Integer('x', minval=3, maxval=4)", {"type": "integer", "minimum": 1}),
        ("Text('x')", "Integer('x')", {}),
        ("Text('x')", "List('x', choices=['u'])", {"type": "string"}),
        ("Checkbox('x', choices=['u'])", "Checkbox('x', choices=['v'])",
         {"type": "array", "uniqueItems": True, "items": {"type": "string", "enum": ["u", "v"]}}),
    ],
)  # fmt: skip
def test_a_question_that_differs_between_branches_allows_what_either_allows(
    make: Make, first: str, second: str, merged: dict[str, Any]
) -> None:
    entry = form(make(f"BooleanList('b', default=True, whentrue=[{first}], whenfalse=[{second}])"))["properties"]["x"]

    assert {name: value for name, value in entry.items() if name not in ("title", "position", "description")} == merged


def test_a_form_of_too_many_branches_allows_the_answers_that_it_does_not_know(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                data["nextworkflow"] = "rare"
                return [Confirm(f"c{n}", default=False) for n in range(12)]

            def rare(self, data):
                return [Text("rare", default="x")] if all(data[f"c{n}"] for n in range(12)) else []
        """,
        script="{{ rare | default('none') }}",
    )
    schema = form(application)
    answers = {**{f"c{n}": True for n in range(12)}, "rare": "yes"}

    assert not application.describe().complete
    assert "rare" not in schema["properties"]
    assert valid(schema, answers)
    assert application.render(answers).text.splitlines()[-1] == "yes"


def test_a_path_that_only_real_answers_can_follow_is_left_where_it_fails(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                data["nextworkflow"] = "second"
                return [Text("model"), Confirm("big", default=False)]

            def second(self, data):
                models = {"real": 3}
                return [Integer("n", default=models[data["model"]])]
        """,
        script="{{ n }}",
    )
    schema = form(application)

    assert not application.describe().complete
    assert schema["required"] == ["model"]
    assert valid(schema, {"model": "real", "n": 5})
    assert application.render({"model": "real", "n": 5}).text.endswith("\n5\n")


def test_one_path_leaves_nothing_to_the_next(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                data["seen"].append("a path")
                return [Confirm("b", default=False), Integer("n", default=len(data["seen"]))]
        """,
        config="jobbergate_config: {default_template: job.sh.j2, seen: []}\napplication_config: {}\n",
    )

    assert form(application)["properties"]["n"]["default"] == 1


def test_made_up_answers_are_plausible(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                data["nextworkflow"] = "second"
                return [Text("t"), Integer("n", minval=2, maxval=8), Checkbox("c", choices=["u"]), Directory("d"),
                        List("l", choices=["v"])]

            def second(self, data):
                import os
                assert float(data["t"]) and 2 <= data["n"] <= 8 and data["c"] == ["u"] and data["l"] == "v"
                assert os.path.isdir(data["d"])
                return [Text("last")]
        """
    )

    assert "last" in form(application)["properties"]
    assert application.describe().complete


@pytest.mark.parametrize("error", ["raise ValueError('broken')", "return 'x'"])
def test_an_application_that_fails_at_once_has_no_form(make: Make, error: str) -> None:
    with pytest.raises((InterviewError, LoadingError)):
        make(steps=f"def mainflow(self, data):\n    {error}").describe()


def test_the_questions_are_read_once(make: Make) -> None:
    application = make("Text('x')")

    assert application.describe() is application.describe()


@pytest.mark.parametrize(
    ("script", "directives"),
    [
        ("#SBATCH --time=5\n#SBATCH -p debug\nhostname\n#SBATCH --nodes=2", ("--time=5", "-p debug")),
        ("#SBATCH --time={{ x }}\n#SBATCH --nodes=2", ("--nodes=2",)),
        ("{% if x %}\n#SBATCH --time=5\n{% endif %}\n#SBATCH --nodes=2", ("--nodes=2",)),
        ("{# a note #}\n{% set y = 5 %}\n#SBATCH --nodes=2", ("--nodes=2",)),
        ("echo", ()),
    ],
)
def test_the_directives_are_those_that_the_template_always_says(
    make: Make, script: str, directives: tuple[str, ...]
) -> None:
    assert make("Text('x')", script=script).describe().directives == directives


@pytest.mark.parametrize("name", ["array-over-files", "multi-task", "nested-questions", "parameter-study"])
def test_the_examples_have_complete_forms_that_need_no_answer(name: str) -> None:
    application = Application.from_path(EXAMPLES / name)

    assert valid(form(application), {})
    assert application.describe().complete
