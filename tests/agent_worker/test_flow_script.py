"""The job script of an ordinary flow."""

import os
import subprocess
from pathlib import Path

import pytest

from agent_worker.flow_script import environment_text, flow_job_script
from jobbergate_flows.errors import JobbergateFlowsError


def test_the_script_runs_its_command_with_the_environment_of_the_file_and_holds_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "environment").write_text(environment_text({"API_KEY": "it's $secret\n2nd `line`"}))
    script = flow_job_script(
        command="bash -c 'printf %s \"$API_KEY $PREPARED $PWD\"'",
        environment_file=str(tmp_path / "environment"),
        setup_commands=["export PREPARED=yes"],
        working_directory=str(tmp_path),
    )
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == f"it's $secret\n2nd `line` yes {tmp_path}"
    assert "secret" not in script


def test_the_command_replaces_the_shell_so_that_slurm_signals_the_flow_itself(tmp_path: Path) -> None:
    (tmp_path / "environment").write_text("")
    script = flow_job_script(command="bash -c 'echo $$'", environment_file=str(tmp_path / "environment"))
    shell = subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    output, _ = shell.communicate(script)
    assert output.strip() == str(shell.pid)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"working_directory": "/no/such/folder"}, 72),
        ({"environment_file": "/no/such/file"}, 73),
    ],
)
def test_what_cannot_be_set_up_ends_the_job_before_the_flow_starts(
    tmp_path: Path, options: dict[str, str], code: int
) -> None:
    (tmp_path / "environment").write_text("")
    script = flow_job_script(
        **{"command": "echo started", "environment_file": str(tmp_path / "environment"), **options}
    )
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")


@pytest.mark.parametrize(
    ("modules", "said", "code"),
    [
        (["gcc/12", "openmpi"], "load gcc/12\nload openmpi\nset up\nstarted\n", 0),
        (["gcc/12", "missing", "openmpi"], "load gcc/12\nload missing\n", 71),
        ([], "set up\nstarted\n", 0),
    ],
    ids=["loaded in their order", "one is missing", "none"],
)
def test_modules_are_loaded_before_the_set_up_and_a_missing_one_ends_the_job(
    tmp_path: Path, modules: list[str], said: str, code: int
) -> None:
    (tmp_path / "environment").write_text("")
    script = flow_job_script(
        command="echo started",
        environment_file=str(tmp_path / "environment"),
        modules=modules,
        setup_commands=["echo set up"],
    )
    module = {"BASH_FUNC_module%%": '() { echo "$*"; [ "$2" != missing ]; }'}
    done = subprocess.run(
        ["bash"], input=script, env={**os.environ, **module}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (said, code)


def test_a_name_that_no_shell_takes_is_refused() -> None:
    with pytest.raises(JobbergateFlowsError, match="letters, digits"):
        environment_text({"A;rm -rf": "x"})
