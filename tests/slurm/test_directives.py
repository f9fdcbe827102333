"""`#SBATCH` lines, read as sbatch reads them, and injected."""

from __future__ import annotations

import pytest

from jobbergate_flows.slurm.directives import inject_sbatch_params, parse_directives, parse_parameters
from jobbergate_flows.slurm.errors import OptionRefused


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


def test_an_unfinished_quotation_is_taken_as_it_stands() -> None:
    assert parse_parameters(["""--comment="never closed --time=5"""]).options["time"] == "5"


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


@pytest.mark.parametrize("param", ["--time=5\nrm -rf ~", "--time=5\r", "--time=5\x00", "time=5", ""])
def test_a_parameter_that_would_become_a_shell_line_is_refused(param: str) -> None:
    with pytest.raises(OptionRefused, match="no sbatch option"):
        inject_sbatch_params("#!/bin/bash\n", [param])


def test_what_is_injected_is_read_back() -> None:
    text = inject_sbatch_params("#!/bin/bash\n#SBATCH --time=5\necho\n", ["--time=6", "--hold"])

    assert parse_directives(text).options == {"time": "6", "hold": ""}
