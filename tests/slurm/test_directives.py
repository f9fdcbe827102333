"""`#SBATCH` lines, read as sbatch reads them, and injected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobbergate_flows.slurm.directives import (
    inject_sbatch_params,
    parse_arguments,
    parse_directives,
    parse_parameters,
)
from jobbergate_flows.slurm.errors import OptionRefused
from tests.cluster.slurm import SlurmCluster


def test_every_form_of_an_option_is_read() -> None:
    script = """#!/bin/bash
#SBATCH --time=5 --mem 4G
#SBATCH -p debug -n4 -J "my job" # the rest is a comment
#SBATCH --exclusive --account=a

echo
"""

    directives = parse_directives(script)

    assert directives.options == {
        "time": "5", "mem": "4G", "partition": "debug", "ntasks": "4", "job-name": "my job", "exclusive": "",
        "account": "a",
    }  # fmt: skip
    assert directives.raw[0] == "--time=5 --mem 4G"


def test_lines_after_the_first_command_do_not_count() -> None:
    script = "#!/bin/bash\n\n  # a comment\n#SBATCH --time=5\nmodule load x\n#SBATCH --time=9\n"

    assert parse_directives(script).options == {"time": "5"}


def test_a_later_line_wins_and_others_like_it_are_comments() -> None:
    script = "#!/bin/bash\n#SBATCH --time=5\n##SBATCH --time=6\n # SBATCH --time=7\n#SBATCH --time=8\n"

    assert parse_directives(script).options == {"time": "8"}


READ = {
    '--output="a b"': "a b",
    "--output='a b'": "a b",
    '-o "a b"': "a b",
    '-o"a b"': "a b",
    '--output=a"b c"d': "ab cd",
    """--output='x" y'""": 'x" y',
    """--output='a\\'b'""": "a'b",
    '--output=a\\"b': 'a"b',
    "--output=a#b --time=nonsense": "a",
    "--output=a # b": "a",
    "--outpu=a": "a",
    "-o=a": "=a",
    "--output --hold": "--hold",
    "-Ho a": "a",
}
UNREADABLE = [
    "--output=a b",
    "--output=a\\ b",
    '--output="a b',
    "x --output=a",
    "-",
    ":x",
    "--nice 5",
    "--exclusive user",
]


@pytest.mark.parametrize("text", READ)
def test_quotes_are_sbatchs(text: str) -> None:
    read = parse_parameters([text])

    assert (read.options["output"], read.faults) == (READ[text], ())


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_sbatch_could_not_read_is_a_fault(text: str) -> None:
    assert len(parse_parameters([text]).faults) == 1


def test_real_sbatch_reads_the_same(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    def reads(text: str) -> str | None:
        script = f"#!/bin/sh\n#SBATCH {text}\n"
        job = slurm_cluster.run("sbatch", "--parsable", "--hold", f"--chdir={tmp_path}", stdin=script, check=False)
        if not job:
            return None
        shown = slurm_cluster.run("scontrol", "show", "job", job.strip())
        slurm_cluster.run("scancel", job.strip())
        [output] = re.findall(r"^ *StdOut=(.*?) *$", shown, re.MULTILINE)
        return str(output).removeprefix(f"{tmp_path}/")

    assert {text: reads(text) for text in READ} == READ
    assert {text: reads(text) for text in UNREADABLE} == dict.fromkeys(UNREADABLE)


def test_the_arguments_of_a_command_are_words_already() -> None:
    read = parse_arguments(["--output=a b#c", "--comment=it's", "-Hp", "debug"])

    assert read.options == {"output": "a b#c", "comment": "it's", "hold": "", "partition": "debug"}
    assert read.faults == ()


def test_parameters_go_before_the_first_command() -> None:
    text = "#!/bin/bash\n#SBATCH --time=5\n\n# about\necho 1\necho 2\n"

    assert inject_sbatch_params(text, ["--mem=4G", "-p debug"]) == (
        "#!/bin/bash\n#SBATCH --time=5\n\n# about\n"
        "# Sbatch params injected at rendering time\n#SBATCH --mem=4G\n#SBATCH -p debug\n\n"
        "echo 1\necho 2\n"
    )


def test_parameters_go_to_the_end_of_a_script_without_commands() -> None:
    assert inject_sbatch_params("#!/bin/bash", ["--mem=4G"], header="by me") == (
        "#!/bin/bash\n# by me\n#SBATCH --mem=4G\n\n"
    )


def test_nothing_is_injected_without_parameters() -> None:
    assert inject_sbatch_params("#!/bin/bash\necho", []) == "#!/bin/bash\necho"


@pytest.mark.parametrize("param", ["--time=5\nrm -rf ~", "--time=5\r", "--time=5\x00", "time=5", "", "-", "--time=5 9"])
def test_a_parameter_that_would_become_a_shell_line_is_refused(param: str) -> None:
    with pytest.raises(OptionRefused, match="no sbatch option"):
        inject_sbatch_params("#!/bin/bash\n", [param])


def test_what_is_injected_is_read_back() -> None:
    text = inject_sbatch_params("#!/bin/bash\n#SBATCH --time=5\necho\n", ["--time=6", "--hold"])

    assert parse_directives(text).options == {"time": "6", "hold": ""}
