"""Loading an application, and what is said of one that is none."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobbergate_flows.applications import Application, ApplicationError, LoadingError, load_application
from jobbergate_flows.applications import sources as sources_module
from tests.applications.conftest import CONFIG, Make, Write

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["array-over-files", "multi-task", "nested-questions", "parameter-study"])
def test_an_example_loads_with_its_readme_as_description(name: str) -> None:
    application = load_application(EXAMPLES / name)

    assert application.name == name
    assert application.entrypoint == "templates/job.sh.j2"
    assert application.description == (EXAMPLES / name / "README.md").read_text().strip()
    assert application.source == str(EXAMPLES / name)


def test_the_same_files_have_the_same_digest_wherever_they_are(write: Write, tmp_path: Path) -> None:
    first = Application.from_path(write())
    (tmp_path / "study").rename(tmp_path / "elsewhere")
    second = Application.from_path(tmp_path / "elsewhere", "study")

    assert first.digest == second.digest
    assert first.digest.startswith("sha256:")
    assert (first == second, hash(first) == hash(second)) == (True, True)


@pytest.mark.parametrize("change", ["templates/job.sh.j2", "jobbergate.py", "jobbergate.yaml", "data/new.txt"])
def test_any_change_of_a_file_changes_the_digest(write: Write, change: str) -> None:
    folder = write(files={"data/old.txt": ""})
    before = Application.from_path(folder).digest
    with (folder / change).open("a") as file:
        file.write("\n")

    assert Application.from_path(folder).digest != before


def test_what_tools_leave_in_the_folder_is_no_part_of_the_application(write: Write) -> None:
    folder = write()
    before = Application.from_path(folder).digest
    write(
        files={
            ".git/HEAD": "x",
            "data/.git": "gitdir: elsewhere",
            "__pycache__/a.pyc": "x",
            "b.pyc": "x",
            ".DS_Store": "x",
        }
    )

    assert Application.from_path(folder).digest == before


def test_an_application_can_be_pickled_and_copied(make: Make) -> None:
    application = make("Text('who', default='you')", script="echo {{ who }}")

    for other in (pickle.loads(pickle.dumps(application)), copy.deepcopy(application)):
        assert other == application
        assert other.render() == application.render()


@pytest.mark.parametrize(
    ("folder", "name"), [("my study/1", "1"), ("größe & maß", "größe-maß"), ("a%b<c>", "a-b-c"), ("...", "application")]
)
def test_the_name_is_one_that_prefect_takes(make: Make, tmp_path: Path, folder: str, name: str) -> None:
    files = make().files

    assert Application.from_files(files, name=folder.split("/")[-1], source="here").name == name


@pytest.mark.parametrize(
    ("config", "entrypoint", "supporting"),
    [
        ("default_template: templates/job.sh.j2", "templates/job.sh.j2", {}),
        ("default_template: job.sh.j2", "templates/job.sh.j2", {}),
        (
            "supporting_files: [templates/in.txt.j2, templates/deep/x.py.jinja2]",
            "templates/job.sh.j2",
            {"templates/in.txt.j2": "in.txt", "templates/deep/x.py.jinja2": "deep/x.py"},
        ),
        (
            "supporting_files: [in.txt.j2, deep/x.py.jinja2]\n"
            "  supporting_files_output_name: {in.txt.j2: [input.dat], deep/x.py.jinja2: run/y.py}",
            "templates/job.sh.j2",
            {"templates/in.txt.j2": "input.dat", "templates/deep/x.py.jinja2": "run/y.py"},
        ),
        ("template_files: [templates/job.sh.j2]", "templates/job.sh.j2", {}),
        (
            "template_files: [job.sh.j2, in.txt.j2]\n  supporting_files: [in.txt.j2]",
            "templates/job.sh.j2",
            {"templates/in.txt.j2": "in.txt"},
        ),
        (
            "default_template: in.txt.j2\n  supporting_files: [in.txt.j2, job.sh.j2]",
            "templates/in.txt.j2",
            {"templates/job.sh.j2": "job.sh"},
        ),
        (
            "default_template: job.sh.j2\n  supporting_files:\n  supporting_files_output_name:\n  output_directory: .",
            "templates/job.sh.j2",
            {},
        ),
    ],
)
def test_templates_are_found_as_jobbergate_finds_them(
    make: Make, config: str, entrypoint: str, supporting: Mapping[str, str]
) -> None:
    application = make(
        config=f"jobbergate_config:\n  {config}\napplication_config: {{}}\n",
        files={"templates/in.txt.j2": "#!", "templates/deep/x.py.jinja2": ""},
    )

    assert (application.entrypoint, dict(application.supporting)) == (entrypoint, supporting)


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(LoadingError, match="no such folder") as missing:
        load_application(tmp_path / "nowhere")
    with pytest.raises(LoadingError, match="no folder"):
        load_application(str(tmp_path / "file"))
    assert missing.value.where == str(tmp_path / "nowhere")
    assert missing.value.hint


@pytest.mark.parametrize("missing", ["jobbergate.yaml", "jobbergate.py", "templates/job.sh.j2"])
def test_each_of_the_three_kinds_of_files_is_needed(write: Write, missing: str) -> None:
    folder = write()
    (folder / missing).unlink()

    with pytest.raises(LoadingError, match=missing if missing.startswith("job") else "no template") as caught:
        load_application(folder)
    assert caught.value.where == str(folder)
    assert caught.value.hint


JOBBERGATE_CONFIG = "jobbergate_config:\n  default_template: templates/job.sh.j2\n"


@pytest.mark.parametrize(
    ("config", "line", "message"),
    [
        ("jobbergate_config:\n  a: [1, 2\napplication_config: {}\n", 3, "bad YAML"),
        ("jobbergate_config: {\n", 2, "bad YAML"),
        ("\tjobbergate_config: {}\n", 1, "bad YAML"),
        ("a: 2020-13-45\n", 1, "bad YAML: month must be in"),
        ("jobbergate_config:\n  default_template: ''\napplication_config: {}\n", 2, "names '', which is not there"),
        ("[" * 20_000, None, "nested too deeply"),
        ("x: " + "y" * (300 << 10), None, "larger than 256 KiB"),
        ("", None, "no map"),
        ("- a\n", None, "no map"),
        (CONFIG + "extra: 1\n", 4, "unknown key 'extra'"),
        ("application_config: {}\n", None, "the map jobbergate_config is missing"),
        (JOBBERGATE_CONFIG, None, "the map application_config is missing"),
        ("jobbergate_config:\napplication_config: {}\n", 1, "jobbergate_config is not a map"),
        ("jobbergate_config: {}\napplication_config: [1]\n", 2, "application_config is not a map"),
        (JOBBERGATE_CONFIG + "  supporting_files: a.j2\napplication_config: {}\n", 3, "supporting_files is not a list"),
        (
            JOBBERGATE_CONFIG + "  supporting_files:\n  - a.j2\n  - 5\napplication_config: {}\n",
            5,
            "supporting_files.1 is not a text",
        ),
        ("jobbergate_config:\n  default_template: 7\napplication_config: {}\n", 2, "default_template is not a text"),
        (
            JOBBERGATE_CONFIG + "  supporting_files: [b.j2]\n  supporting_files_output_name:\n    b.j2: [x, y]\n"
            "application_config: {}\n",
            5,
            "has 2 output names",
        ),
        (
            JOBBERGATE_CONFIG + "  supporting_files: [b.j2]\n  supporting_files_output_name:\n    b.j2: []\n"
            "application_config: {}\n",
            5,
            "has 0 output names",
        ),
        (
            JOBBERGATE_CONFIG + "  supporting_files: [b.j2]\n  supporting_files_output_name:\n    b.j2: ../x\n"
            "application_config: {}\n",
            5,
            "outside the run's directory",
        ),
        (
            JOBBERGATE_CONFIG + "  result_files:\n    - '*.csv'\n    - '!'\napplication_config: {}\n",
            5,
            "no pattern of files",
        ),
        (
            JOBBERGATE_CONFIG + "  supporting_files_output_name:\n    c.j2: x\napplication_config: {}\n",
            4,
            "names 'c.j2', which is not there",
        ),
        (
            JOBBERGATE_CONFIG + "  supporting_files: [b.j2, a/b.j2]\n"
            "  supporting_files_output_name: {a/b.j2: b}\napplication_config: {}\n",
            3,
            "two supporting files are written as 'b'",
        ),
        (
            "jobbergate_config:\n  default_template: x.j2\napplication_config: {}\n",
            2,
            "names 'x.j2', which is not there",
        ),
        (
            JOBBERGATE_CONFIG + "  template_files:\n  - templates/job.sh.j2\n  - gone.j2\napplication_config: {}\n",
            5,
            "template_files names 'gone.j2', which is not there",
        ),
        (
            JOBBERGATE_CONFIG + "  supporting_files: [../../secret.j2]\napplication_config: {}\n",
            3,
            "outside the application",
        ),
        (
            JOBBERGATE_CONFIG + "  supporting_files: [/etc/passwd]\napplication_config: {}\n",
            3,
            "outside the application",
        ),
        ("jobbergate_config: {}\napplication_config: {}\n", 1, "3 entrypoints: templates/a/b.j2, templates/b.j2, "),
        (
            "jobbergate_config:\n  supporting_files: [job.sh.j2, b.j2, a/b.j2]\n"
            "  supporting_files_output_name: {b.j2: c}\napplication_config: {}\n",
            1,
            "no entrypoint",
        ),
    ],
)
def test_a_wrong_jobbergate_yaml_is_told_with_its_line_and_the_mend(
    write: Write, config: str, line: int | None, message: str
) -> None:
    folder = write(config=config, files={"templates/b.j2": "", "templates/a/b.j2": ""})

    with pytest.raises(LoadingError) as caught:
        load_application(folder)

    assert message in caught.value.message
    assert caught.value.where == (f"jobbergate.yaml:{line}" if line else "jobbergate.yaml")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("code", "where", "message"),
    [
        ("import os\n\ndef f(:\n", "jobbergate.py:3", "invalid syntax"),
        ("x = 1\n  y = 2\n", "jobbergate.py:2", "unexpected indent"),
        ("x = 1\n", "jobbergate.py", "defines no application class"),
        ("class JobbergateApplication\n", "jobbergate.py:1", "expected ':'"),
        ("(" * 10_000, "jobbergate.py", "does not load"),
        ("x = '\0'", "jobbergate.py", "null"),
    ],
)
def test_a_jobbergate_py_that_is_none_is_told_without_running_it(
    write: Write, code: str, where: str, message: str
) -> None:
    with pytest.raises(LoadingError) as caught:
        load_application(write(code=code))

    assert message in caught.value.message
    assert str(caught.value.where).startswith(where)
    assert caught.value.hint


CLASS = "class JobbergateApplication(JobbergateApplicationBase):\n    "
BASE = "from jobbergate_cli.application_base import JobbergateApplicationBase\n"


@pytest.mark.parametrize(
    ("code", "where", "message"),
    [
        ("import there_is_no_such_module\nclass JobbergateApplication: pass\n", "jobbergate.py:1", "No module named"),
        ("class A(Exception):\n    pass\n", "jobbergate.py", "defines no application class"),
        ("JobbergateApplication = 5\n", "jobbergate.py", "defines no application class"),
        (
            BASE + "class A(JobbergateApplicationBase): pass\nclass B(A): pass\n",
            "jobbergate.py",
            "no application class",
        ),
        (BASE + CLASS + "def __init__(self, config):\n        1 / 0\n", "jobbergate.py:4", "ZeroDivisionError"),
        (BASE + CLASS + "def __init__(self, config): pass\n", "jobbergate.py", "no attribute 'jobbergate_config'"),
        (BASE + CLASS + "pass\n", "jobbergate.py", "has no mainflow"),
        (BASE + "import sys\nsys.exit(3)\n" + CLASS + "pass\n", "jobbergate.py:3", "SystemExit: 3"),
        (BASE + "import helper\n" + CLASS + "pass\n", "helper.py:2", "invalid syntax"),
    ],
)
def test_a_jobbergate_py_that_fails_is_told_with_its_line_once_it_runs(
    make: Make, code: str, where: str, message: str
) -> None:
    application = make(code=code, files={"helper.py": "\nx = = 1\n"})

    for use in (application.describe, application.render):
        with pytest.raises(ApplicationError) as caught:
            use()
        assert isinstance(caught.value, LoadingError) or "mainflow" in str(caught.value)
        assert caught.value.hint
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{where}: ")


def test_a_module_that_is_missing_is_told_with_where_it_may_be_put(make: Make) -> None:
    with pytest.raises(LoadingError) as caught:
        make(code="import there_is_no_such_module\nclass JobbergateApplication: pass\n").describe()

    assert "put there_is_no_such_module beside jobbergate.py, install it" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("#!/bin/bash\n\n{% if x %}\n", 3, "if"),
        ("#!/bin/bash\n{{ x\n", 2, "parse"),
        ("#!/bin/bash\n{% endfor %}\n", 2, "endfor"),
        ("{{ x | nonsense }}", 1, "nonsense"),
        ("#!/bin/bash\n{% if x is oddly %}{% endif %}", 2, "oddly"),
        (b"#!/bin/bash\n\xff\n", 2, "not UTF-8"),
        ("{{ " + "(" * 5000, None, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("name", ["templates/job.sh.j2", "templates/in.txt.j2"])
def test_a_template_that_does_not_parse_is_told_with_its_line(
    write: Write, name: str, template: str | bytes, line: int | None, message: str
) -> None:
    config = "jobbergate_config:\n  supporting_files: [in.txt.j2]\napplication_config: {}\n"
    folder = write(config=config, files={"templates/in.txt.j2": "", name: template})

    with pytest.raises(LoadingError) as caught:
        load_application(folder)

    assert message in caught.value.message
    assert caught.value.where == (f"{name}:{line}" if line else name)
    assert caught.value.hint


def test_nothing_of_a_template_is_computed_when_it_is_loaded(make: Make) -> None:
    constant = "{{ 2 ** 2 ** 40 }}{{ 'x' * 10 ** 11 }}"

    assert make(script=constant).describe().complete


def test_a_link_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = write()
    (folder / "templates" / "link.j2").symlink_to(tmp_path / "secret")

    with pytest.raises(LoadingError, match="no regular file") as caught:
        load_application(folder)
    assert caught.value.where == "templates/link.j2"


@pytest.mark.parametrize("files", [{"data": b"x" * (5 << 20)}, {f"data/{number}": "" for number in range(1000)}])
def test_an_application_larger_than_the_limit_is_refused(write: Write, files: dict[str, str | bytes]) -> None:
    with pytest.raises(LoadingError, match="larger than 5 MiB or 1000 files") as caught:
        load_application(write(files=files))
    assert sources_module.MAX_APPLICATION_BYTES == 5 << 20
    assert caught.value.hint


def test_the_patterns_of_its_results_go_with_the_script(write: Write) -> None:
    folder = write(
        config=CONFIG.replace("application_config", "  result_files: ['*.csv', /plots/]\napplication_config")
    )

    assert Application.from_path(folder).render({}).result_files == ("*.csv", "/plots/")
