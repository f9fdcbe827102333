"""`app run`: a job submitted and followed without Prefect; and `job`: what can be asked of it afterwards."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command_line import Ended, application, run, start
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import wait_until

LONG = "until [ -e go-on ]; do read -t 0.1 <> <(:) || true; done"


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBBERGATE_FLOWS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("JOBBERGATE_FLOWS_LEDGER", str(tmp_path / "state" / "ledger.sqlite3"))


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """The directory that jobs run below."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


@pytest.fixture
def ended_later(jobs: Path) -> Iterator[None]:
    """Let jobs with a LONG script end with the test."""
    yield
    for folder in jobs.iterdir():
        (folder / "go-on").touch()


def run_locally(folder: Path, jobs: Path, *arguments: str) -> Ended:
    return run("app", "run", folder, "--cluster", "local", "--directory", jobs, *arguments)


def test_a_jobs_output_and_states_are_followed_to_its_end(tmp_path: Path, jobs: Path) -> None:
    folder = application(tmp_path / "app", "cat input; pwd; echo careful >&2", "", {"input": "from a file\n"})

    ended = run_locally(folder, jobs, "--sbatch=--error=errors.txt", "--job-name=mine")

    [directory] = jobs.iterdir()
    assert ended.code == 0
    assert ended.out == f"from a file\n{directory}\n"
    assert directory.name.startswith("mine-")
    assert "careful" in ended.err
    assert "Submitted job 1 on local" in ended.err
    assert "Completed" in ended.err.splitlines()[-1]


@pytest.mark.usefixtures("ended_later")
def test_a_reader_that_goes_ends_the_command_and_leaves_the_job_alone(tmp_path: Path, jobs: Path) -> None:
    script = "while [ ! -e go-on ]; do echo line; read -t 0.1 <> <(:) || true; done"
    process = start("app", "run", application(tmp_path / "app", script), "--cluster", "local", "--directory", jobs)
    assert process.stdout is not None
    assert process.stdout.readline() == "line\n"

    process.stdout.close()

    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(60) == 0
    assert "Traceback" not in said
    assert json.loads(run("job", "show", "1", "--json").out)["state"] == "Running"


@pytest.mark.parametrize(
    ("ledger", "code", "says"),
    [
        ("/etc/passwd", 3, "a file of another kind"),
        ("postgresql+psycopg://u:p@127.0.0.1:9/x", 4, "Connection refused"),
        ("postgresql+psycopg://u:p@here:there/x", 3, "there"),
    ],
)
def test_a_ledger_that_does_not_open_is_told_in_one_line_and_a_hint(ledger: str, code: int, says: str) -> None:
    ended = run("job", "list", env={"JOBBERGATE_FLOWS_LEDGER": ledger})

    error, hint = ended.err.splitlines()
    assert ended.code == code
    assert says in error
    assert "JOBBERGATE_FLOWS_LEDGER" in hint


def test_a_job_that_fails_fails_the_command(tmp_path: Path, jobs: Path) -> None:
    ended = run_locally(application(tmp_path / "app", "echo before; exit 3"), jobs)

    assert (ended.code, ended.out) == (1, "before\n")
    assert "exit code 3" in ended.err


def test_an_arrays_lines_name_their_task(tmp_path: Path, jobs: Path) -> None:
    folder = application(tmp_path / "app", "echo task $SLURM_ARRAY_TASK_ID; exit $SLURM_ARRAY_TASK_ID")

    ended = run_locally(folder, jobs, "--sbatch=--array=0-1")

    assert ended.code == 1
    assert sorted(ended.out.splitlines()) == ["[0] task 0", "[1] task 1"]
    assert "1 COMPLETED, 1 FAILED" in ended.err.replace("1 FAILED, 1 COMPLETED", "1 COMPLETED, 1 FAILED")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--directory", "/nowhere"], 3, "/nowhere"),
        (["--directory", ""], 2, "--directory is empty"),
        (["--directory", "/proc"], 3, "/proc"),
        (["--sbatch=--wrap=ls"], 3, "wrap"),
        (["--sbatch=--time=-1"], 3, "time"),
        (["--sbatch=--ntasks=0"], 3, "tasks"),
        (["--sbatch=--mail-user=a\nb"], 3, "no sbatch option"),
        (["--answer", "other=1"], 3, "other"),
    ],
)
def test_bad_input_is_refused_before_anything_is_submitted(
    tmp_path: Path, jobs: Path, arguments: list[str], code: int, says: str
) -> None:
    ended = run_locally(application(tmp_path / "app", "echo"), jobs, *arguments)

    assert ended.code == code
    assert says in ended.err.splitlines()[0]
    assert list(jobs.iterdir()) == []
    assert json.loads(run("job", "list", "--json").out) == []


@pytest.mark.usefixtures("ended_later")
def test_a_detached_job_is_followed_shown_and_cancelled_by_its_id(tmp_path: Path, jobs: Path) -> None:
    folder = application(tmp_path / "app", f"echo first\n{LONG}\n")

    job = run_locally(folder, jobs, "--detach").out.strip()
    following = start("job", "logs", "--follow", job)
    assert following.stdout is not None
    assert following.stdout.readline() == "first\n"

    assert json.loads(run("job", "show", job, "--json").out)["state"] == "Running"
    assert run("job", "cancel", job).code == 0

    assert following.wait(60) == 0
    shown = json.loads(run("job", "show", job, "--json").out)
    assert (shown["state"], shown["final"]) == ("Cancelled", True)
    assert run("job", "show", shown["key"]).code == 0
    assert run("job", "list").out.splitlines()[1].split()[:2] == [job, shown["key"]]


@pytest.mark.usefixtures("ended_later")
def test_an_interrupt_leaves_the_job_alone_and_says_how_to_cancel_it(tmp_path: Path, jobs: Path) -> None:
    process = start(
        "app", "run", application(tmp_path / "app", f"echo first\n{LONG}\n"),
        "--cluster", "local", "--directory", jobs,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"

    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "jobbergate-flows job cancel 1" in told
    assert json.loads(run("job", "show", "1", "--json").out)["state"] == "Running"
    (next(jobs.iterdir()) / "go-on").touch()
    wait_until(lambda: json.loads(run("job", "show", "1", "--json").out)["state"] == "Completed", 60, "the job's end")


def test_the_end_of_the_output_is_printed(tmp_path: Path, jobs: Path) -> None:
    script = "#SBATCH --error=errors\nseq 1 500; printf no-newline; echo trouble >&2"
    run_locally(application(tmp_path / "app", script), jobs)

    assert run("job", "logs", "1", "--lines", "3").out == "499\n500\nno-newline\n"
    assert len(run("job", "logs", "1", "-n", "1000").out.splitlines()) == 501
    assert run("job", "logs", "1", "--stderr").out == "trouble\n"
    assert run("job", "logs", "1", "-n", "0").out == ""


def test_the_efficiency_of_an_ended_job_is_told_by_its_id_and_its_key(tmp_path: Path, jobs: Path) -> None:
    folder = application(tmp_path / "app", "exit $SLURM_ARRAY_TASK_ID")
    run_locally(folder, jobs, "--sbatch=--array=0-1")
    key = json.loads(run("job", "show", "1", "--json").out)["key"]

    by_id, by_key, task = (run("job", "efficiency", word, "--json") for word in ("1", key, "1_1"))
    shown = run("job", "efficiency", "1")

    assert json.loads(by_id.out) == json.loads(by_key.out)
    assert [job["state"] for job in json.loads(by_id.out)["jobs"]] == ["COMPLETED", "FAILED"]
    assert [job["job_id"] for job in json.loads(task.out)["jobs"]] == ["1_1"]
    assert "not known: too short to be measured" in shown.out
    assert run("job", "efficiency", "nothing").code == 3
    assert "accounting has no job 77" in run("job", "efficiency", "77", "--cluster=local").err


def test_cancelling_a_job_that_has_ended_says_so(tmp_path: Path, jobs: Path) -> None:
    run_locally(application(tmp_path / "app", "echo"), jobs)

    ended = run("job", "cancel", "1")

    assert (ended.code, ended.err) == (0, "Job 1 on local has ended already: Completed\n")


def test_a_long_name_does_not_widen_the_list(tmp_path: Path, jobs: Path) -> None:
    run_locally(application(tmp_path / "app", "echo"), jobs, "--job-name", "n" * 200)

    assert max(map(len, run("job", "list").out.splitlines())) < 160
    assert json.loads(run("job", "list", "--json").out)[0]["name"] == "n" * 200


@pytest.mark.parametrize("arguments", [["show", "77"], ["logs", "77"], ["cancel", "77"]])
def test_a_job_that_is_not_known_is_bad_input(arguments: list[str]) -> None:
    ended = run("job", *arguments)

    assert ended.code == 3
    assert "77" in ended.err.splitlines()[0]
    assert "job list" in ended.err


def test_the_local_cluster_is_always_well() -> None:
    assert run("cluster", "check", "--cluster", "local").code == 0


def test_a_cluster_that_is_not_there_is_unreachable(tmp_path: Path, jobs: Path) -> None:
    missing = {"SLURM_CONF": "/nowhere/slurm.conf"}

    checked = run("cluster", "check", "--cluster", "slurm", env=missing)
    ran = run("app", "run", application(tmp_path / "app", "echo"), "--cluster", "slurm", env=missing)

    assert (checked.code, ran.code) == (4, 4)
    assert "/nowhere/slurm.conf" in checked.err

    as_json = run("cluster", "check", "--cluster", "slurm", "--json", env=missing)
    findings = json.loads(as_json.out)["findings"]
    assert as_json.code == 4
    assert [(finding["ok"], "/nowhere/slurm.conf" in finding["detail"]) for finding in findings] == [(False, True)]


@pytest.mark.slurm
def test_a_job_runs_on_real_slurm(slurm_cluster: SlurmCluster, tmp_path: Path, jobs: Path) -> None:
    folder = application(tmp_path / "app", "echo on $SLURM_CLUSTER_NAME; cat input", "", {"input": "text\n"})
    env = {**os.environ, **slurm_cluster.environment}

    ended = run("app", "run", folder, "--cluster", "slurm", "--directory", jobs, env=env)
    failed = run("app", "run", application(tmp_path / "bad", "exit 5"), "--directory", jobs, env=env)
    refused = run("app", "run", folder, "--directory", jobs, "--sbatch=--partition=nowhere", env=env)

    assert (ended.code, ended.out) == (0, f"on {slurm_cluster.name}\ntext\n"), ended.err
    assert failed.code == 1
    assert "exit code 5" in failed.err
    assert refused.code == 1
    assert "invalid partition" in refused.err
    listed = json.loads(run("job", "list", "--json", env=env).out)
    assert [entry["state"] for entry in listed] == ["Refused", "Failed", "Completed"]
    shown = json.loads(run("job", "show", listed[2]["job_id"], "--json", env=env).out)
    assert shown["accounting"]["State"] == "COMPLETED"


@pytest.mark.slurm
def test_an_interrupt_before_slurm_has_the_job_gives_the_submission_up(
    slurm_cluster: SlurmCluster, tmp_path: Path, jobs: Path
) -> None:
    env = {**os.environ, **slurm_cluster.environment}
    slurm_cluster.pause("slurmctld")
    try:
        process = start("app", "run", application(tmp_path / "app", LONG), "--directory", jobs, env=env)
        wait_until(lambda: json.loads(run("job", "list", "--json", env=env).out), 60, "the intent")
        process.send_signal(signal.SIGINT)
        told = process.stderr
        assert told is not None
        wait_until(lambda: "Giving up" in told.readline(), 60, "the answer to the interrupt")
    finally:
        slurm_cluster.resume("slurmctld")

    assert process.wait(200) == 130

    def states() -> list[str]:
        return [entry["state"] for entry in json.loads(run("job", "list", "--json", env=env).out)]

    # Slurm may have had the job by then, which takes a moment to end.
    wait_until(lambda: states() == ["Cancelled"], 60, "the end of the submission")
    wait_until(lambda: "app-" not in slurm_cluster.run("squeue", "--noheader", "--format=%j"), 60, "the job's end")


@pytest.mark.slurm
def test_a_real_cluster_that_answers_is_well(slurm_cluster: SlurmCluster) -> None:
    ended = run("cluster", "check", "--json", env=slurm_cluster.environment)

    checked = json.loads(ended.out)
    assert (ended.code, checked["ok"], checked["cluster"]) == (0, True, slurm_cluster.name), ended.out


def test_a_jobs_files_are_brought_and_nothing_is_overwritten(tmp_path: Path, jobs: Path) -> None:
    script = "mkdir plots; echo 1 > plots/a.txt; echo 2 > sums.csv; echo ended"
    assert run_locally(application(tmp_path / "app", script, "", {"input": "x"}), jobs).code == 0
    here = tmp_path / "here"

    all_of_it = run("job", "fetch", "1", "--to", here)
    some = run("job", "fetch", "1", "*.csv", "--to", here, "--json")

    assert all_of_it.out.splitlines() == [f"{here}/plots/a.txt", f"{here}/slurm-1.out", f"{here}/sums.csv"]
    assert json.loads(some.out) == [f"{here}/sums.csv"]
    (here / "sums.csv").write_text("mine")
    refused = run("job", "fetch", "1", "*.csv", "--to", here)
    assert refused.code == 3
    assert refused.err.splitlines()[0].startswith(f"Error: {here}/sums.csv: ")
    assert (here / "sums.csv").read_text() == "mine"
    assert run("job", "fetch", "1", "*.csv", "--to", here, "--overwrite").code == 0
    assert (here / "sums.csv").read_text() == "2\n"


def test_fetching_says_what_is_missing(tmp_path: Path, jobs: Path) -> None:
    assert run_locally(application(tmp_path / "app", "true"), jobs).code == 0

    nothing = run("job", "fetch", "1", "*.csv")
    no_pattern = run("job", "fetch", "1", "!")

    assert (nothing.code, nothing.out, nothing.err) == (0, "", "The job has no such files.\n")
    assert no_pattern.code == 3
    assert "as in a .gitignore" in no_pattern.err
