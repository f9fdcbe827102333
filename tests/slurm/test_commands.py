"""Slurm's commands: their arguments, and what is read out of recorded answers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobbergate_flows.slurm.cluster import FoundJob, SubmitRequest, Witness
from jobbergate_flows.slurm.commands import (
    CommandResult,
    Sacct,
    SacctDetails,
    SacctFind,
    SacctSteps,
    Sbatch,
    Scancel,
    ShowConfig,
    Squeue,
    SqueueFind,
    clean_environment,
)
from jobbergate_flows.slurm.errors import (
    ClusterUnreachable,
    SlurmError,
    SubmissionAmbiguous,
    SubmissionHeld,
    SubmissionRefused,
)
from jobbergate_flows.slurm.jobs import ExitCode, JobRow
from tests.slurm.recorded import recorded

SINCE = datetime.fromtimestamp(1795246140, UTC)
TIMED_OUT = CommandResult("", "", None)


def request(script: str = "#!/bin/bash\n", *arguments: str) -> SubmitRequest:
    return SubmitRequest(script, arguments, "study-k1", "k1", "/work/study-k1")


def by_id(rows: list[JobRow]) -> dict[str, JobRow]:
    assert len({row.job_id for row in rows}) == len(rows)
    return {row.job_id: row for row in rows}


def test_squeue_shows_what_is_alive_and_what_ended_a_moment_ago() -> None:
    rows = by_id(Squeue(["48"]).parse(recorded("squeue")))

    assert rows["52"] == JobRow(
        "52", "52", "RUNNING", "squeue", user_id=0, submit=SINCE, start=SINCE, nodes="node1", partition="debug",
        time_limit=60, node_count=1, cpus=1,
    )  # fmt: skip
    assert rows["57"].reason == "BeginTime"
    assert (rows["57"].start, rows["57"].expected_start) == (None, datetime.fromtimestamp(1795249740, UTC))
    assert (rows["52"].expected_start, rows["56"].expected_start) == (None, None)
    assert (rows["60"].node_count, rows["60"].cpus) == (5, 5)
    assert rows["51"].state == "TIMEOUT"
    assert rows["51"].end == datetime.fromtimestamp(1795246228, UTC)
    assert rows["58"].reason == "DependencyNeverSatisfied"
    assert {row.source for row in rows.values()} == {"squeue"}


def test_the_pending_tasks_of_an_array_are_rows_of_their_own() -> None:
    rows = Squeue(["55"]).parse(recorded("squeue"))

    array = {row.array_task_id: row.state for row in rows if row.array_job_id == "55"}
    assert array == {0: "FAILED", 1: "FAILED", 2: "RUNNING", 3: "RUNNING", 4: "PENDING", 5: "PENDING"}
    sparse = [row for row in rows if row.array_job_id == "59"]
    assert [row.array_task_id for row in sparse][:3] == [1, 8, 15]
    assert len(sparse) == 15 + 1 + 6
    assert sparse[-1].job_id == "59_305"


def test_a_task_list_that_was_cut_off_leaves_one_row_that_has_not_ended() -> None:
    (row,) = Squeue(["6"]).parse(
        CommandResult("6_[1,3,5...]|6|1,3,5...|PENDING|0|1|N/A|N/A||debug|1:00|1|1|Priority\n", "", 0)
    )

    assert (row.job_id, row.array_task_id, row.state) == ("6", None, "PENDING")


@pytest.mark.parametrize(
    ("printed", "minutes"),
    [("1:00", 1), ("0:30", 1), ("1:00:00", 60), ("1-12:00:00", 2160), ("UNLIMITED", None), ("INVALID", None),
     ("NOT_SET", None)],
)  # fmt: skip
def test_the_time_limit_is_in_whole_minutes(printed: str, minutes: int | None) -> None:
    (row,) = Squeue(["6"]).parse(CommandResult(f"6|6|N/A|RUNNING|0|1|2|3|node1|debug|{printed}|1|1|None\n", "", 0))

    assert row.time_limit == minutes


def test_a_start_that_slurm_expects_at_another_time_is_no_change_of_the_job() -> None:
    one, other = (
        Squeue(["6"]).parse(CommandResult(f"6|6|N/A|PENDING|0|1|{start}|N/A||debug|1:00|1|1|Priority\n", "", 0))
        for start in (1795246140, 1795246141)
    )

    assert one[0].expected_start != other[0].expected_start
    assert one == other


def test_a_single_forgotten_job_is_absent_and_so_are_two() -> None:
    assert Squeue(["4711"]).parse(recorded("squeue-one-unknown")) == []
    assert Squeue(["4711", "4712"]).parse(recorded("squeue-two-unknown")) == []


@pytest.mark.parametrize(
    "answer", [recorded("squeue-timed-out"), recorded("squeue-no-controller"), TIMED_OUT], ids=lambda r: r.words
)
def test_a_squeue_that_failed_says_nothing_of_any_job(answer: CommandResult) -> None:
    with pytest.raises(ClusterUnreachable):
        Squeue(["48"]).parse(answer)
    with pytest.raises(ClusterUnreachable):
        SqueueFind("ok", "root").parse(answer)


def test_squeue_finds_an_array_once() -> None:
    shouting = CommandResult(recorded("squeue-find").stdout + "70|1795246140|RUNNING|ARR\n", "", 0)

    assert SqueueFind("arr", "root").parse(shouting)[1:] == [FoundJob("55", SINCE, "FAILED")]


def test_sacct_tells_how_jobs_ended() -> None:
    rows = by_id(Sacct(["48"], SINCE).parse(recorded("sacct")))

    assert rows["49"] == JobRow(
        "49", "49", "FAILED", "sacct", exit_code=ExitCode(3), user_id=0, submit=SINCE, start=SINCE, end=SINCE,
        nodes="node1", partition="debug",
    )  # fmt: skip
    assert rows["50"].exit_code == ExitCode(0, 9)
    assert (rows["54"].state, rows["54"].cancelled_by) == ("CANCELLED", 0)
    assert rows["52"].end is None
    assert rows["56"].nodes is None
    assert rows["55_1"].exit_code == ExitCode(7)
    assert (rows["55_5"].state, rows["55_5"].reason) == ("PENDING", "JobArrayTaskLimit")
    assert (rows["55_2"].state, rows["55_2"].reason) == ("RUNNING", None)
    assert "55" not in rows


def test_a_job_name_cannot_forge_another_jobs_row() -> None:
    # Job 61 was named "x|y\n52|COMPLETED|0:0|1|1|1|n|0|None".
    squeue = [row for row in Squeue(["52"]).parse(recorded("squeue")) if row.job_id == "52"]
    sacct = [row for row in Sacct(["52"], SINCE).parse(recorded("sacct")) if row.job_id == "52"]

    assert [row.state for row in squeue + sacct] == ["RUNNING", "RUNNING"]


def test_the_states_of_later_versions_are_words_like_any_other() -> None:
    shown = by_id(Squeue(["70"]).parse(recorded("squeue", "later")))
    ended = Sacct(["74"], SINCE).parse(recorded("sacct", "later"))

    assert [row.state for row in shown.values()][:3] == ["EXPEDITING", "POWER_UP_NODE", "REQUEUE_HOLD"]
    assert shown["75"].reason == "ReqNodeNotAvail, UnavailableNodes:node[1|2]"
    assert shown["73"].nodes == "node[1-4]"
    assert [(row.job_id, row.state) for row in ended if row.job_id == "79"] == [("79", "NODE_FAIL"), ("79", "PENDING")]
    assert ended[1].cancelled_by == 1001


def test_an_accounting_that_is_down_says_nothing_of_any_job() -> None:
    down = recorded("sacct-no-slurmdbd")

    for command in (
        Sacct(["48"], SINCE), SacctFind("ok", "root", SINCE), SacctDetails("48", SINCE), SacctSteps("48", SINCE),
    ):  # fmt: skip
        with pytest.raises(ClusterUnreachable, match="Connection refused"):
            command.parse(down)


def test_sacct_is_asked_by_seconds_and_with_ten_minutes_slack() -> None:
    arguments = Sacct(["48", "49"], SINCE).arguments()

    assert f"--starttime=uts{1795246140 - 600}" in arguments
    assert "--jobs=48,49" in arguments
    assert not any("Name" in argument or "WorkDir" in argument for argument in arguments)


def test_what_is_found_bears_exactly_the_name_and_the_witness_is_known_apart() -> None:
    answer = recorded("sacct-find")
    shouting = CommandResult(answer.stdout + "70|1795246140|COMPLETED|OK\n", "", 0)

    found, witnessed = SacctFind("ok", "root", SINCE, Witness("49", "bad", SINCE)).parse(shouting)
    assert [job.job_id for job in found] == ["30", "48"]
    assert witnessed

    _, by_another_of_that_name = SacctFind("ok", "root", SINCE, Witness("4711", "bad", SINCE)).parse(answer)
    assert not by_another_of_that_name


def test_an_empty_answer_of_accounting_shows_no_witness() -> None:
    assert SacctFind("ok", "root", SINCE, Witness("49", "bad", SINCE)).parse(CommandResult("", "", 0)) == ([], False)


def test_details_are_the_jobs_with_its_largest_step() -> None:
    recording = recorded("sacct-details")
    job, batch = recording.stdout.splitlines()
    fields = batch.split("\x1f")
    fields[-1] = "4380K"
    answer = CommandResult("\n".join([job, batch, "\x1f".join(fields)]) + "\n", "", 0)

    details = SacctDetails("49", SINCE).parse(answer).fields

    assert details["JobID"] == "49"
    assert details["State"] == "FAILED"
    assert details["ExitCode"] == "3:0"
    assert details["Partition"] == "debug"
    assert details["MaxRSS"] == "4380K"
    assert SacctDetails("4711", SINCE).parse(recorded("sacct-none")).fields == {}


def test_steps_are_with_their_job_in_numbers_without_units() -> None:
    records = {record.job_id: record for record in SacctSteps("1", SINCE).parse(recorded("sacct-steps"))}
    job = records["2"]
    batch, first, second = job.steps

    assert (job.state, str(job.exit_code), job.elapsed, job.time_limit) == ("COMPLETED", "0:0", 11, 10)
    assert (job.cpus, job.nodes, job.total_cpu, job.energy) == (2, 1, 4.014, None)
    assert job.requested == job.allocated == {"billing": 2, "cpu": 2, "mem": 600 * 1024**2, "node": 1}
    assert (job.submit, job.start) == tuple(datetime.fromtimestamp(at, UTC) for at in (1795263768, 1795263771))
    assert [step.step_id for step in job.steps] == ["batch", "0", "1"]
    assert (batch.tasks, batch.cpus, batch.user_cpu, batch.system_cpu) == (1, 2, 0.006, 0.014)
    assert (first.start, first.end, first.elapsed) == (batch.start, second.start, 5)
    assert (second.tasks, second.total_cpu) == (2, 2.758)
    assert (second.max_rss, second.max_rss_node, second.max_rss_task) == (71155712, "node1", 0)
    assert (second.average_rss, second.usage_total["mem"], second.usage_max["mem"]) == (71124992, 142249984, 71155712)
    assert (second.usage_total["cpu"], second.usage_average["cpu"]) == (2, 1)


def test_the_lives_of_a_requeued_job_each_have_their_steps() -> None:
    lives = [record for record in SacctSteps("6", SINCE).parse(recorded("sacct-steps")) if record.job_id == "6"]

    assert [(life.state, life.elapsed, [step.state for step in life.steps]) for life in lives] == [
        ("REQUEUED", 2, ["CANCELLED"]),
        ("FAILED", 0, ["CANCELLED"]),
    ]
    assert lives[1].submit == lives[0].end


def test_array_tasks_are_jobs_of_their_own_in_accounting_too() -> None:
    records = {record.job_id: record for record in SacctSteps("5", SINCE).parse(recorded("sacct-steps"))}

    assert (records["5_0"].raw_id, records["5_0"].state, records["5_1"].state) == ("10", "COMPLETED", "FAILED")
    assert records["5_0"].steps[0].max_rss == 32190464
    assert [records[f"9_{task}"].state for task in (3, 4, 5)] == ["PENDING"] * 3


def test_what_accounting_does_not_know_is_none() -> None:
    records = {record.job_id: record for record in SacctSteps("4", SINCE).parse(recorded("sacct-steps"))}

    assert (records["4"].steps[0].max_rss, records["4"].steps[0].usage_total) == (None, {"energy": 0})
    assert (records["8"].state, records["8"].end, records["8"].steps[0].max_rss) == ("RUNNING", None, None)
    assert (records["7"].state, records["7"].time_limit, records["7"].allocated) == ("CANCELLED", None, {})


@pytest.mark.parametrize(
    ("printed", "seconds"),
    [("00:00.001", 0.001), ("01:02.500", 62.5), ("00:01:02", 62), ("02:03:04", 7384), ("1-02:03:04", 93784),
     ("INVALID", None), ("", None)],
)  # fmt: skip
def test_cpu_times_are_seconds(printed: str, seconds: float | None) -> None:
    fields = recorded("sacct-steps").stdout.splitlines()[0].split("|")
    fields[15] = printed

    (record,) = SacctSteps("1").parse(CommandResult("|".join(fields) + "\n", "", 0))

    assert record.total_cpu == seconds


def test_units_and_gpus_of_other_sites_and_versions_are_read_too() -> None:
    fields = recorded("sacct-steps").stdout.splitlines()[1].split("|")
    job = recorded("sacct-steps").stdout.splitlines()[0].split("|")
    job[14] = "billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=1.50G,node=1"
    fields[18], fields[22] = "4380K", "cpu=00:00:01,gres/gpumem=800M,gres/gpuutil=93,mem=4380K"

    (record,) = SacctSteps("1").parse(CommandResult(f"{'|'.join(job)}\n{'|'.join(fields)}\n", "", 0))

    assert record.allocated["mem"] == 1.5 * 1024**3
    assert record.allocated["gres/gpu"] == 2
    assert record.steps[0].max_rss == 4380 * 1024
    assert record.steps[0].usage_max == {
        "cpu": 1, "gres/gpumem": 800 * 1024**2, "gres/gpuutil": 93, "mem": 4380 * 1024,
    }  # fmt: skip


def test_steps_are_asked_for_without_free_text_and_with_earlier_lives_where_their_time_is_known() -> None:
    known, unknown = SacctSteps("48", SINCE).arguments(), SacctSteps("48_1").arguments()

    assert {"-D", "--noconvert", f"--starttime=uts{1795246140 - 600}", "--jobs=48"} <= set(known)
    assert "-D" not in unknown
    assert not any("starttime" in argument for argument in unknown)
    assert not any("Name" in argument or "Line" in argument or "Comment" in argument for argument in known)


def test_sbatch_is_told_who_the_job_is_and_reads_the_script_from_its_input() -> None:
    assert Sbatch(request("#!/bin/bash\n", "--time=5", "--no-requeue")).arguments() == (
        "sbatch", "--parsable", "--job-name=study-k1", "--comment=k1", "--chdir=/work/study-k1", "--propagate=NONE",
        "--time=5", "--no-requeue",
    )  # fmt: skip


def test_the_job_id_is_the_last_line_whatever_stands_around_it() -> None:
    noisy = CommandResult("Welcome to hill\n123;hill\n", "sbatch: error: temporarily unable ... retrying\n", 0)

    assert Sbatch(request()).parse(recorded("sbatch")) == "66"
    assert Sbatch(request()).parse(noisy) == "123"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (recorded("sbatch-timed-out"), SubmissionAmbiguous),
        (TIMED_OUT, SubmissionAmbiguous),
        (CommandResult("", "", -9), SubmissionAmbiguous),
        (CommandResult("", "", 0), SubmissionAmbiguous),
        (CommandResult("", "sbatch: error: Zero Bytes were transmitted or received", 1), SubmissionAmbiguous),
        (CommandResult("", "Unable to contact slurm controller (receive failure)", 1), SubmissionAmbiguous),
        (recorded("sbatch-no-controller"), ClusterUnreachable),
        (CommandResult("", "sbatch: error: Rate limit exceeded", 1), ClusterUnreachable),
        (CommandResult("", "Slurm backup controller in standby mode", 1), ClusterUnreachable),
        (CommandResult("", "sbatch: error: AssocMaxSubmitJobLimit", 1), SubmissionHeld),
        (CommandResult("", "Job violates accounting/QOS policy (job submit limit, ...)", 1), SubmissionHeld),
        (recorded("sbatch-partition"), SubmissionRefused),
        (recorded("sbatch-array"), SubmissionRefused),
        (recorded("sbatch-no-script"), SubmissionRefused),
        (recorded("sbatch-dos"), SubmissionRefused),
        (recorded("sbatch-large"), SubmissionRefused),
    ],
    ids=lambda value: getattr(value, "words", "")[:40],
)
def test_what_may_be_done_after_a_failed_sbatch_follows_from_its_words(
    answer: CommandResult, error: type[SlurmError]
) -> None:
    with pytest.raises(error) as raised:
        Sbatch(request()).parse(answer)

    assert type(raised.value) is error


def test_a_refusal_is_in_sbatchs_own_words() -> None:
    with pytest.raises(SubmissionRefused, match="Invalid partition name specified"):
        Sbatch(request()).parse(recorded("sbatch-partition"))
    with pytest.raises(SubmissionRefused, match="larger than Slurm takes"):
        Sbatch(request()).parse(recorded("sbatch-large"))


@pytest.mark.parametrize("option", ["--test-only", "--wait", "-W", "--clusters=other", "-M other", "--uid=0"])
def test_a_script_may_not_say_what_would_lose_the_job(option: str) -> None:
    with pytest.raises(SubmissionRefused, match="the script says"):
        Sbatch(request(f"#!/bin/bash\n#SBATCH {option}\n")).check()


def test_a_script_may_name_the_cluster_that_it_goes_to() -> None:
    command = Sbatch(request("#!/bin/bash\n#SBATCH --clusters=hill --export=NONE\n"), cluster="hill")

    command.check()

    assert "--clusters=hill" in command.arguments()


def test_cancelling_what_is_not_there_is_no_error() -> None:
    Scancel(["4711"]).parse(recorded("scancel-unknown"))
    Scancel(["48"]).parse(recorded("scancel-ended"))
    Scancel(["48"]).parse(
        CommandResult("", "scancel: error: Kill job error on job id 48: Job/step already completing or completed\n", 1)
    )


def test_a_scancel_that_reached_nobody_is_one() -> None:
    mixed = "scancel: error: Kill job error on job id 1: Invalid job id specified\n"
    for answer in (
        recorded("scancel-no-controller"),
        CommandResult("", mixed + recorded("scancel-no-controller").stderr, 8),
        TIMED_OUT,
    ):
        with pytest.raises(ClusterUnreachable):
            Scancel(["1", "52"]).parse(answer)


def test_the_controllers_configuration_is_read() -> None:
    config = ShowConfig().parse(recorded("show-config"))

    assert config["MinJobAge"] == "300 sec"
    assert config["PrivateData"] == "none"
    assert config["SLURM_VERSION"] == "22.05.8"
    with pytest.raises(ClusterUnreachable):
        ShowConfig().parse(recorded("show-config-no-controller"))


def test_the_environment_of_commands_is_built_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SBATCH_PARTITION", "SLURM_JOB_ID", "SQUEUE_FORMAT", "SACCT_FORMAT", "XDG_RUNTIME_DIR", "PREFECT_API"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/hill.conf")

    submitting, querying = clean_environment(), clean_environment(query=True)

    assert set(submitting) == {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LC_ALL", "SLURM_CONF"}
    assert set(querying) - set(submitting) == {"SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"}
    assert querying["SLURM_TIME_FORMAT"] == "%s"
    assert querying["LC_ALL"] == "C"
    assert clean_environment(slurm_conf="/other.conf")["SLURM_CONF"] == "/other.conf"
