"""Rendering: what templates may say, and what is said of those that fail."""

from __future__ import annotations

from typing import Any

import pytest

from jobbergate_flows.applications import LimitExceeded, Limits, RenderingError
from jobbergate_flows.slurm.errors import OptionRefused
from tests.applications.conftest import Make

CONFIG = """\
jobbergate_config:
  default_template: templates/job.sh.j2
  supporting_files: [templates/in.txt.j2]
  supporting_files_output_name: {templates/in.txt.j2: [data/input.txt]}
application_config: {x: 1, items: [a, b], values: v, nested: {key: value}, "odd name": odd, _hidden: h}
"""


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ x }}", "1"),
        ("{{ data.x }}", "1"),
        ('{{ data["x"] }}', "1"),
        ("{{ x }}{{ data.x }}{{ data['x'] }}", "111"),
        ("{{ data.items }}", "['a', 'b']"),
        ("{{ data['items'] }}", "['a', 'b']"),
        ("{{ items }}{{ data.values }}", "['a', 'b']v"),
        ("{{ data.keys() | list | length }}", "9"),
        ("{{ data.get('x') }}{{ data.get('y', 2) }}", "12"),
        ("{{ data['odd name'] }}{{ data['_hidden'] }}", "oddh"),
        ("{{ nested.key }}{{ data.nested['key'] }}", "valuevalue"),
        ("{% if y is defined %}a{% else %}b{% endif %}", "b"),
        ("{% if data.y is defined %}a{% else %}b{% endif %}", "b"),
        ("{{ y | default('d') }}{{ data.y | default('e') }}", "de"),
        ("{{ 'x' in data }}{{ 'y' in data }}", "TrueFalse"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        ("{% set z = data.x + 1 %}{{ z }}", "2"),
        ("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(x) }}", "<1>"),
        ("{{ '<&>' }} grün 漢", "<&> grün 漢"),
        ("${#array[@]} {{ '{{' }}", "${#array[@]} {{"),
    ],
)
def test_a_template_has_its_parameters_by_their_names_and_as_data(make: Make, template: str, text: str) -> None:
    template = template.replace("${#", "${{ '{#' }}")
    application = make(script=template, config=CONFIG, files={"templates/in.txt.j2": template})

    script = application.render()

    assert script.text == f"#!/bin/bash\n{text}\n"
    assert script.files == {"data/input.txt": text}


def test_an_answer_named_data_is_that_answer(make: Make) -> None:
    assert make("Text('data', default='mine')", script="{{ data }}").render().text == "#!/bin/bash\nmine\n"


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("{{ y }}", 2, "'y' is undefined"),
        ("\n\n{{ data.y }}", 4, "'data.y' is undefined"),
        ("{{ data['y'] }}", 2, "'data.y' is undefined"),
        ("{{ x }}\n{{ nested.y }}", 3, "has no attribute 'y'"),
        ("{{ y.z }}", 2, "'y' is undefined"),
        ("{% if y %}{% endif %}", 2, "'y' is undefined"),
        ("\n{% for i in y %}{% endfor %}", 3, "'y' is undefined"),
        ("a {{ x +\n  y }}", 2, "'y' is undefined"),
        ("{{ 1 / 0 }}", 2, "ZeroDivisionError: division by zero"),
        ("\n{{ x + 'a' }}", 3, "TypeError"),
        ("{{ ''.__class__.__mro__ }}", 2, "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ items.append.__self__ }}", 2, "unsafe"),
        ("{{ nested.update({'a': 1}) }}{{ items.__init__ }}", 2, "unsafe"),
        ("{% for i in range(1000000) %}{% endfor %}", 2, "OverflowError: Range too big"),
        ("{% include 'in.txt.j2' %}", 2, "cannot include, import or extend another one"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", 2, "RecursionError"),
    ],
)
@pytest.mark.parametrize("supporting", [False, True])
def test_a_template_that_fails_is_told_with_its_line(
    make: Make, supporting: bool, template: str, line: int, message: str
) -> None:
    name = "templates/in.txt.j2" if supporting else "templates/job.sh.j2"
    application = make(config=CONFIG, files={"templates/in.txt.j2": "", name: f"#!/bin/bash\n{template}\n"})

    with pytest.raises(RenderingError) as caught:
        application.render()

    assert message in caught.value.message
    assert caught.value.where == f"{name}:{line}"
    assert caught.value.hint


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_script_ends_with_a_line_end_and_a_supporting_file_as_its_template_does(make: Make, end: str) -> None:
    files: dict[str, Any] = {"templates/job.sh.j2": f"#!/bin/sh\nls{end}", "templates/in.txt.j2": f"a\nb{end}"}
    script = make(config=CONFIG, files=files).render()

    assert (script.text, script.files["data/input.txt"]) == (f"#!/bin/sh\nls{end or chr(10)}", f"a\nb{end}")


def test_line_ends_of_other_systems_become_those_of_a_script(make: Make) -> None:
    assert make(files={"templates/job.sh.j2": b"#!/bin/sh\r\nls\r\n"}).render().text == "#!/bin/sh\nls\n"


@pytest.mark.parametrize("template", ["", "echo\n", "\n#!/bin/bash\n"])
def test_a_script_without_an_interpreter_is_refused(make: Make, template: str) -> None:
    with pytest.raises(RenderingError, match="does not begin with #!") as caught:
        make(files={"templates/job.sh.j2": template}).render()
    assert caught.value.where == "templates/job.sh.j2:1"


@pytest.mark.parametrize(
    ("questions", "job_name", "name"),
    [
        ("", None, "study"),
        ("Text('job_script_name', default='mine')", None, "mine"),
        ("Text('job_script_name', default='')", None, "study"),
        ("Text('job_script_name', default='mine')", "yours", "yours"),
        ("Const('job_script_name', default=7)", None, "7"),
    ],
)
def test_the_script_is_named(make: Make, questions: str, job_name: str | None, name: str) -> None:
    assert make(questions).render(job_name=job_name).name == name


def test_sbatch_parameters_are_injected_before_the_first_command(make: Make) -> None:
    script = make(script="#SBATCH --time=1\n\nhostname").render(sbatch=["--time=5", "--partition=debug"])

    assert script.text == (
        "#!/bin/bash\n#SBATCH --time=1\n\n# Sbatch params injected at rendering time\n"
        "#SBATCH --time=5\n#SBATCH --partition=debug\n\nhostname\n"
    )


@pytest.mark.parametrize("option", ["--time=5\n#SBATCH --uid=0", "time=5", "hostname"])
def test_what_is_no_sbatch_parameter_is_not_injected(make: Make, option: str) -> None:
    with pytest.raises(OptionRefused):
        make().render(sbatch=[option])


def test_the_same_answers_give_the_same_script_and_others_another(make: Make) -> None:
    application = make("Integer('n', default=1)", script="echo {{ n }}")

    assert application.render() == application.render({"n": "1"})
    assert application.render().digest != application.render({"n": 2}).digest


def test_a_script_that_is_no_text_is_refused(make: Make) -> None:
    application = make(
        steps="def mainflow(self, data):\n    data['x'] = chr(0xD800)\n    return []", script="echo {{ x }}"
    )

    with pytest.raises(RenderingError, match="surrogates not allowed"):
        application.render()


def test_a_template_without_an_end_is_ended(make: Make) -> None:
    loop = "{% for i in range(90000) %}" * 3 + "{% endfor %}" * 3

    with pytest.raises(LimitExceeded, match=r"longer than 0\.7 s"):
        make(script=loop).render(limits=Limits(seconds=0.7))
