"""`app`: init, check, schema, render."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobbergate_flows.slurm.directives import parse_directives
from tests.cli.command_line import EXAMPLES, application, run, start

STEPS = 'Integer("steps", "How many steps?", minval=1, maxval=9, default=3)'
NAME = 'Text("name", "Which name?")'


def test_a_new_application_checks_and_renders(tmp_path: Path) -> None:
    folder = tmp_path / "my-study"

    assert run("app", "init", folder).code == 0

    checked = run("app", "check", folder)
    assert (checked.code, "NOT OK" in checked.out) == (0, False)
    assert run("app", "render", folder, "--fast").out.startswith("#!")


def test_init_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "jobbergate.py").write_text("mine")

    ended = run("app", "init", tmp_path)

    assert ended.code == 3
    assert (tmp_path / "jobbergate.py").read_text() == "mine"


def test_render_prints_the_script_and_nothing_else(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo {{ steps }}", STEPS)

    ended = run("app", "render", folder)

    assert ended == type(ended)(0, "#!/bin/bash\n#SBATCH --time=1\necho 3\n", "")


@pytest.mark.parametrize("text", ['{"steps": 5, "name": "file"}', "steps: 5\nname: file\n"])
def test_answers_come_from_a_file_and_single_ones_go_over_them(tmp_path: Path, text: str) -> None:
    folder = application(tmp_path / "app", "echo {{ data.name }} {{ data.steps }}", f"{STEPS}, {NAME}")
    (tmp_path / "answers").write_text(text)

    from_file = run("app", "render", folder, "--answers", tmp_path / "answers", "--answer", "name=a=b")
    from_standard_input = run("app", "render", folder, "--answers", "-", stdin=text)

    assert from_file.out.endswith("echo a=b 5\n")
    assert from_standard_input.out.endswith("echo file 5\n")


def test_a_list_is_an_answer_too(tmp_path: Path) -> None:
    question = 'Checkbox("stations", "Which?", choices=["north", "south", "east"])'
    folder = application(tmp_path / "app", "echo {{ data.stations | join(' ') }}", question)

    ended = run("app", "render", folder, "--answer", 'stations=["south", "north"]')

    assert ended.code == 0
    assert set(ended.out.splitlines()[-1].split()) == {"echo", "south", "north"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 3, "name"),
        (["--fast"], 3, "name"),
        (["--no-input"], 3, "name"),
        (["--answer", "name=x", "--answer", "steps=10"], 3, "steps"),
        (["--answer", "name=x", "--answer", "steps=many"], 3, "steps"),
        (["--answer", "name=x", "--answer", "stepps=1"], 3, "stepps"),
        (["--answer", "name"], 2, "name=value"),
        (["--answer", "name=[1"], 2, "list"),
        (["--answers", ""], 2, "--answers is empty"),
        (["--answers", "/nowhere/answers.json"], 3, "/nowhere/answers.json"),
        (["--answer", "name=x", "--sbatch=--wrap=ls"], 3, "wrap"),
        (["--answer", "name=x", "--sbatch=--time=soon"], 3, "soon"),
        (["--answer", "name=x", "--sbatch=--time=5\n#SBATCH --uid=0"], 3, "no sbatch option"),
    ],
)
def test_bad_input_is_told_in_one_line_and_a_hint(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    folder = application(tmp_path / "app", "echo {{ name }} {{ steps }}", f"{STEPS}, {NAME}")

    ended = run("app", "render", folder, *arguments, stdin="an answer that nobody asked for\n")

    error, *hint = ended.err.splitlines()
    assert (ended.code, ended.out) == (code, "")
    assert error.startswith("Error: ")
    assert says in error
    assert len(hint) <= 1
    assert all(line.startswith("Hint: ") for line in hint)


def test_answers_that_do_not_parse_are_told_with_their_line(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo")
    (tmp_path / "answers.yaml").write_text("a: 1\nb: [1\n")

    ended = run("app", "render", folder, "--answers", tmp_path / "answers.yaml")

    assert ended.code == 3
    assert "answers.yaml:3" in ended.err


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nd: 2024-13-45\n", 2, "month must be in 1..12"),
        ("a: 1\na: 2\n", 2, "'a' is there twice"),
        ('a: "\x01"\n', 1, "the character U+0001"),
        ("[" * 5000, None, "nested too deeply"),
        ("a: 1\n---\nb: 2\n", None, "no mapping"),
    ],
)
def test_answers_that_are_none_are_told_in_one_line_and_a_hint(
    tmp_path: Path, text: str, line: int | None, says: str
) -> None:
    (tmp_path / "answers.yaml").write_text(text)

    ended = run("app", "render", application(tmp_path / "app", "echo"), "--answers", tmp_path / "answers.yaml")

    error, hint = ended.err.splitlines()
    assert ended.code == 3
    assert error.startswith(f"Error: {tmp_path / 'answers.yaml'}:{f'{line}:' if line else ''} ")
    assert says in error
    assert hint.startswith("Hint: ")


@pytest.mark.parametrize("arguments", [["app", "render", "APP"], ["app", "schema", "APP"], ["--help"], ["job", "list"]])
def test_a_reader_that_goes_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    folder = application(tmp_path / "app", "echo")
    process = start(*(str(folder) if word == "APP" else word for word in arguments))
    assert process.stdout is not None
    process.stdout.close()

    assert (process.wait(60), process.stderr and process.stderr.read()) == (0, "")


def test_a_folder_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    ended = run("app", "render", tmp_path / "nowhere")

    assert ended.code == 3
    assert "nowhere" in ended.err


def test_a_traceback_comes_only_with_debug(tmp_path: Path) -> None:
    assert "Traceback" not in run("app", "render", tmp_path / "nowhere").err
    assert "Traceback" in run("--debug", "app", "render", tmp_path / "nowhere").err


def test_sbatch_options_become_lines_of_the_script(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo")

    ended = run("app", "render", folder, "--sbatch=--time=5", "--sbatch=--partition=debug")

    assert "#SBATCH --time=5\n#SBATCH --partition=debug\n" in ended.out


def test_render_writes_the_script_with_its_supporting_files(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "cat input.txt", STEPS, {"input.txt": "steps {{ steps }}\n"})
    output = tmp_path / "new" / "folder"

    ended = run("app", "render", folder, "--output", output)

    assert ended.out.split() == [str(output / "job.sh"), str(output / "input.txt")]
    assert (output / "job.sh").read_text().endswith("cat input.txt\n")
    assert (output / "input.txt").read_text() == "steps 3\n"


def test_render_overwrites_a_file_that_differs_only_when_forced(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "cat input.txt", STEPS, {"input.txt": "steps {{ steps }}\n"})
    run("app", "render", folder, "--output", tmp_path / "out")

    again = run("app", "render", folder, "--output", tmp_path / "out")
    other = run("app", "render", folder, "--output", tmp_path / "out", "--answer", "steps=4")
    assert (again.code, other.code) == (0, 3)
    assert "input.txt" in other.err
    assert (tmp_path / "out" / "input.txt").read_text() == "steps 3\n"

    forced = run("app", "render", folder, "--output", tmp_path / "out", "--answer", "steps=4", "--force")
    assert forced.code == 0
    assert (tmp_path / "out" / "input.txt").read_text() == "steps 4\n"


def test_a_jobs_name_stands_in_the_script_too(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "#SBATCH --job-name=other\necho")

    one, two = (run("app", "render", folder, "--job-name", name).out for name in ("mine", 'my "own" job'))

    assert parse_directives(one).options["job-name"] == "mine"
    assert parse_directives(two).options["job-name"] == 'my "own" job'


def test_init_says_that_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    ended = run("app", "init", tmp_path / "file")

    assert ended.code == 3
    assert ended.err.splitlines()[0].endswith("it is a file, not a folder")
    assert run("app", "init", "/proc/x").err.splitlines()[1].startswith("Hint: ")


def test_a_path_in_a_hint_can_be_pasted(tmp_path: Path) -> None:
    ended = run("app", "init", tmp_path / "my study")

    assert f"app render '{tmp_path / 'my study'}' --fast" in ended.err


def test_render_gives_scripts_json(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "cat input.txt", "", {"input.txt": "text\n"})

    rendered = json.loads(run("app", "render", folder, "--json", "--job-name", "mine").out)

    assert rendered["name"] == "mine"
    assert rendered["script"].startswith("#!/bin/bash")
    assert rendered["files"] == {"input.txt": "text\n"}
    assert rendered["digest"].startswith("sha256:")


def test_the_schema_is_the_form_of_the_answers(tmp_path: Path) -> None:
    folder = application(tmp_path / "app", "echo", f"{STEPS}, {NAME}")

    schema = json.loads(run("app", "schema", folder).out)

    assert schema["properties"]["steps"]["maximum"] == 9
    assert schema["required"] == ["name"]


def test_check_finds_nothing_in_the_examples() -> None:
    for folder in EXAMPLES.glob("*/jobbergate.yaml"):
        ended = run("app", "check", folder.parent)
        assert (ended.code, ended.err) == (0, ""), folder


@pytest.mark.parametrize(
    ("script", "questions", "says"),
    [
        ("echo {{ nothing }}", "", "nothing"),
        ("echo {% if %}", "", "job.sh.j2:3"),
        ("echo", "Integer(", "jobbergate.py"),
        ("echo", "1 / 0", "jobbergate.py"),
        ("echo\n#SBATCH --ntasks=2", "", "line 4"),
        ("#SBATCH --time=soon", "", "soon"),
        ("#SBATCH --tme=5 --foo", "", "line 3 of the script: sbatch has no option --tme"),
        ("#SBATCH -Z", "", "sbatch has no option -Z"),
        ("#SBATCH --output=a b", "", "line 3 of the script: invalid directive found: b"),
        ('#SBATCH --output="a', "", "unmatched"),
        ("echo", 'Integer("n", minval=10, maxval=1, default=3)', "minimum of 10 is more than its maximum of 1"),
        ("echo", 'Integer("n", default="abc"), Text("t")', "n: 'abc', its default, is no whole number"),
        ("echo", 'List("n", choices=["a", "b"], default="c"), Text("t")', "n: 'c', its default, is none of a, b"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, script: str, questions: str, says: str) -> None:
    folder = application(tmp_path / "app", script, questions)

    told = run("app", "check", folder)
    as_json = run("app", "check", folder, "--json")

    assert (told.code, as_json.code) == (3, 3)
    wrong = [line for line in told.out.splitlines() if line.startswith("NOT OK")]
    assert any(says in line for line in wrong), told.out
    assert json.loads(as_json.out)["ok"] is False
