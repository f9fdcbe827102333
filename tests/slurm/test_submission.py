"""Submitting exactly once, whatever is lost and whoever dies on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.slurm.accounts import AccountRefused
from jobbergate_flows.slurm.cluster import Cluster, SubmitRequest
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.errors import (
    ClusterUnreachable,
    DirectoryRefused,
    FileRefused,
    SlurmError,
    SubmissionAmbiguous,
    SubmissionCancelled,
    SubmissionHeld,
    SubmissionRefused,
)
from jobbergate_flows.slurm.jobs import Known
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionKey, SubmissionStatus, slurm_name
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.submission import SubmissionOrder, settle_cancelled, submit_once
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.slurm.fakes import FaultyCluster, raising

GRACE = 0.05
SCRIPT = JobScript(name="my study", text="#!/bin/sh\necho done\n", files={"data/in.txt": "1\n"})
ENDLESS = JobScript(name="endless", text="#!/bin/sh\nexec sleep 600\n")
KEY = SubmissionKey("run", "script")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[FaultyCluster]:
    faulty = FaultyCluster(tmp_path / "jobs")
    yield faulty
    await faulty.cancel([str(number) for number in range(1, 10)])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def order(base: Path) -> SubmissionOrder:
    return SubmissionOrder(SCRIPT, SlurmResources(), str(base), KEY)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def jobs_of(cluster: Cluster, order: SubmissionOrder, ledger: Ledger) -> list[str]:
    """The jobs that the cluster has for an order, alive or ended."""
    row = ledger.get(order.key.token)
    assert row is not None
    return [job.job_id for job in await cluster.find(row.name_in_slurm, since=row.intent_at)]


def row_of(ledger: Ledger, order: SubmissionOrder) -> Submission:
    row = ledger.get(order.key.token)
    assert row is not None
    return row


async def cancelled_on(cluster: Cluster, job_id: str) -> bool:
    observation = (await cluster.query({job_id: datetime.now(UTC)}))[job_id]
    return isinstance(observation, Known) and all(row.state == "CANCELLED" for row in observation.rows)


async def test_a_job_runs_in_a_directory_of_its_own_with_its_files(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    job = await submit_once(cluster, ledger, order)

    directory = base / f"my-study-{KEY.token}"
    assert job.directory == str(directory)
    assert job.standard_output == job.standard_error == f"{directory}/slurm-{job.job_id}.out"
    assert (directory / "data/in.txt").read_text() == "1\n"
    assert (directory / "my-study.sh").read_text() == SCRIPT.text
    assert await cluster.find(f"my-study-{KEY.token}", since=job.submitted_at)
    row = row_of(ledger, order)
    assert (row.status, row.job) == (SubmissionStatus.SUBMITTED, job)
    assert set(row.written_files) == {"data/in.txt", "my-study.sh"}


async def test_a_supporting_file_may_have_the_name_that_the_script_would_get(
    cluster: FaultyCluster, ledger: Ledger, base: Path
) -> None:
    script = JobScript(name="study", text="#!/bin/sh\nsh study.sh\n", files={"study.sh": "echo helped\n"})

    job = await submit_once(cluster, ledger, SubmissionOrder(script, SlurmResources(), str(base), KEY))

    assert (Path(job.directory) / "study.sh").read_text() == "echo helped\n"
    assert (Path(job.directory) / f"study-{KEY.token}.sh").read_text() == script.text


async def test_directives_and_options_say_where_the_output_goes_and_whether_it_is_an_array(
    cluster: FaultyCluster, ledger: Ledger, base: Path
) -> None:
    script = JobScript(name="a", text="#!/bin/sh\n#SBATCH -o out-%a.txt\n#SBATCH --array=0-1\n#SBATCH -e no\ntrue\n")
    resources = SlurmResources(extra={"error": "/dev/null"})

    job = await submit_once(cluster, ledger, SubmissionOrder(script, resources, str(base), KEY))

    assert job.array
    assert (job.standard_output, job.standard_error) == (f"{job.directory}/out-%a.txt", "/dev/null")


async def test_a_path_with_blanks_is_one_path(cluster: FaultyCluster, ledger: Ledger, base: Path) -> None:
    resources = SlurmResources(extra={"output": "my job.out"})

    job = await submit_once(cluster, ledger, SubmissionOrder(SCRIPT, resources, str(base), KEY))

    assert job.standard_output == f"{job.directory}/my job.out"


async def test_the_same_order_again_is_the_same_job(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder
) -> None:
    job = await submit_once(cluster, ledger, order)

    assert await submit_once(cluster, ledger, order) == job
    assert await jobs_of(cluster, order, ledger) == [job.job_id]

    another = replace(order, key=replace(KEY, attempt=1))
    assert (await submit_once(cluster, ledger, another)).job_id != job.job_id


async def test_many_calls_at_once_submit_once(cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder) -> None:
    jobs = await asyncio.gather(*(submit_once(cluster, ledger, order) for _ in range(5)))

    assert len({job.job_id for job in jobs}) == 1
    assert await jobs_of(cluster, order, ledger) == [jobs[0].job_id]


PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.ledger import Ledger, SubmissionKey
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.submission import SubmissionOrder, submit_once

folder, dies, conf = Path(sys.argv[1]), sys.argv[2] == "dies", sys.argv[3:]
script = JobScript(name="my study", text="#!/bin/sh\\necho done\\n", files={"data/in.txt": "1\\n"})
order = SubmissionOrder(script, SlurmResources(), str(folder / "work"), SubmissionKey("run", "script"))
kind = CommandCluster if conf else LocalCluster

class Cluster(kind):
    async def submit(self, request):
        job_id = await super().submit(request)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return job_id

cluster = Cluster(conf[0], OwnAccountDoor(), slurm_conf=conf[1]) if conf else Cluster(root=folder / "jobs")
print(asyncio.run(submit_once(cluster, Ledger.open(folder / "ledger.sqlite3"), order, grace=0.05)).job_id)
"""


def another_process(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = await asyncio.to_thread(process.communicate, timeout=120)
    return process.returncode, output, errors


async def test_many_processes_at_once_submit_once(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, tmp_path: Path
) -> None:
    answers = await asyncio.gather(*(ended(another_process(tmp_path, "lives")) for _ in range(3)))

    (job_id,) = await jobs_of(cluster, order, ledger)
    assert answers == [(0, f"{job_id}\n", "")] * 3


async def test_a_process_killed_between_the_submission_and_its_record_leaves_one_job(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, tmp_path: Path
) -> None:
    assert (await ended(another_process(tmp_path, "dies")))[0] == -signal.SIGKILL
    assert row_of(ledger, order).status is SubmissionStatus.INTENT

    job = await submit_once(cluster, ledger, order, grace=GRACE)

    assert await jobs_of(cluster, order, ledger) == [job.job_id]


async def test_a_directory_that_is_not_there_is_refused_before_anything_is_kept(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    with pytest.raises(DirectoryRefused, match="no such directory"):
        await submit_once(cluster, ledger, replace(order, directory=f"{base}/missing"))

    assert ledger.recent() == []


async def test_a_refusal_is_kept_with_its_words_and_leaves_no_files(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    refused = replace(order, script=JobScript(name="my study", text="no script\n", files={"a": "1"}), secret="s3cret")

    with pytest.raises(SubmissionRefused, match="batch script"):
        await submit_once(cluster, ledger, refused)

    row = row_of(ledger, order)
    assert row.status is SubmissionStatus.REFUSED
    assert "batch script" in (row.message or "")
    assert files_below(base) == {}
    with pytest.raises(SubmissionRefused, match="batch script"):
        await submit_once(cluster, ledger, refused)


async def test_somebody_elses_file_in_the_place_of_ours_is_left_alone(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    (base / "data").mkdir()
    (base / "data/in.txt").write_text("precious")
    in_place = replace(order, in_place=True)

    with pytest.raises(FileRefused, match="not ours"):
        await submit_once(cluster, ledger, in_place)

    assert (base / "data/in.txt").read_text() == "precious"
    assert row_of(ledger, order).status is SubmissionStatus.REFUSED


@pytest.mark.parametrize("name", ["data/in.txt", ".environment"])
async def test_a_refusal_removes_nothing_that_others_put_there(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, name: str
) -> None:
    theirs = Path(order.run_directory) / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")

    with pytest.raises(FileRefused, match="not ours"):
        await submit_once(cluster, ledger, replace(order, secret="s3cret"))

    assert row_of(ledger, order).status is SubmissionStatus.REFUSED
    assert files_below(Path(order.run_directory)) == {str(theirs): b"precious"}


async def test_what_was_changed_since_an_earlier_life_wrote_it_is_not_removed(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder
) -> None:
    order = replace(order, secret="s3cret")
    await begun(cluster, ledger, order)
    changed = Path(order.run_directory) / "data/in.txt"
    changed.write_text("precious")

    with pytest.raises(FileRefused, match="not ours"):
        await submit_once(cluster, ledger, order, grace=GRACE)

    assert files_below(Path(order.run_directory)) == {str(changed): b"precious"}


async def test_a_retried_submission_replaces_its_own_secret(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    await begun(cluster, ledger, replace(order, secret="s3cret"))

    async def nothing() -> None:
        pass

    cluster.before_submit = nothing

    await submit_once(cluster, ledger, replace(order, secret="another"), grace=GRACE)

    assert files_below(base)[row_of(ledger, order).secret_path or ""] == b"another"


async def test_in_place_our_own_files_are_replaced(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    in_place = replace(order, in_place=True)
    first = await submit_once(cluster, ledger, in_place)
    changed = replace(
        in_place,
        key=SubmissionKey("run 2", "script"),
        script=SCRIPT.model_copy(update={"files": {"data/in.txt": "2\n"}}),
    )

    second = await submit_once(cluster, ledger, changed)

    assert first.directory == second.directory == str(base)
    assert (base / "data/in.txt").read_text() == "2\n"


async def test_in_place_many_may_be_submitted_at_once(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    # Half of them with the same files, half with others of the same names.
    orders = [
        replace(
            order,
            in_place=True,
            key=SubmissionKey(f"run {number}", "script"),
            script=SCRIPT.model_copy(update={"files": {"data/in.txt": f"{number if number % 2 else 0}\n"}}),
        )
        for number in range(9)
    ]

    jobs = await asyncio.gather(*(submit_once(cluster, ledger, one) for one in orders))

    assert len({job.job_id for job in jobs}) == len(orders)


@pytest.mark.usefixtures("accounts")
async def test_only_in_place_may_the_directory_be_somebody_elses(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    os.mkdir(order.run_directory)
    for directory in (order.run_directory, str(base)):
        os.chown(directory, 1, -1)

    with pytest.raises(DirectoryRefused, match="belongs to somebody else"):
        await submit_once(cluster, ledger, order)

    assert row_of(ledger, order).status is SubmissionStatus.REFUSED
    assert os.listdir(order.run_directory) == []
    in_place = replace(order, in_place=True, key=SubmissionKey("run 2", "script"))
    assert (await submit_once(cluster, ledger, in_place)).directory == str(base)


async def test_a_secret_is_its_owners_only_and_not_in_the_ledger(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, tmp_path: Path
) -> None:
    secretive = replace(order, secret="s3cret")
    assert "s3cret" not in repr(secretive)
    await submit_once(cluster, ledger, secretive)

    secret = row_of(ledger, order).secret_path or ""
    assert stat.S_IMODE(os.stat(secret).st_mode) == 0o600
    assert [path for path, content in files_below(tmp_path).items() if b"s3cret" in content] == [secret]


async def test_a_job_whose_submissions_answer_was_lost_is_found_again(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder
) -> None:
    cluster.after_submit = raising(SubmissionAmbiguous("Socket timed out on send/recv operation"))
    told: list[str] = []

    job = await submit_once(cluster, ledger, order, on_wait=told.append, grace=GRACE)

    assert await jobs_of(cluster, order, ledger) == [job.job_id]
    assert "Socket timed out" in told[0]


async def test_a_lost_submission_is_made_again_once_its_absence_is_proved(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder
) -> None:
    cluster.before_submit = raising(SubmissionAmbiguous("Zero Bytes were transmitted"))
    cluster.before_find = raising(ClusterUnreachable("its empty answer proves nothing"))
    told: list[str] = []

    job = await submit_once(cluster, ledger, order, on_wait=told.append, grace=GRACE)

    assert await jobs_of(cluster, order, ledger) == [job.job_id]
    assert any("proves nothing" in why for why in told)


async def test_silence_is_no_proof_of_absence(cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder) -> None:
    cluster.before_submit = raising(SubmissionAmbiguous("Zero Bytes were transmitted"))
    cluster.before_find = raising(*[ClusterUnreachable("away")] * 1000)
    looking = asyncio.Event()

    submitting = asyncio.create_task(
        submit_once(
            cluster, ledger, order, on_wait=lambda why: looking.set() if "cannot find out" in why else None, grace=0
        )
    )
    await asyncio.wait_for(looking.wait(), 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(submitting), 3)
    submitting.cancel()

    assert row_of(ledger, order).status is SubmissionStatus.INTENT
    cluster.before_find = raising()
    assert await jobs_of(cluster, order, ledger) == []


async def test_of_several_jobs_of_one_key_the_oldest_is_kept(
    cluster: FaultyCluster, ledger: Ledger, base: Path
) -> None:
    order = SubmissionOrder(ENDLESS, SlurmResources(), str(base), KEY)
    twins = LocalCluster(root=base.parent / "jobs")
    doubled: list[str] = []

    async def double() -> None:
        row = row_of(ledger, order)
        doubled.append(await twins.submit(SubmitRequest(ENDLESS.text, (), row.name_in_slurm, row.key, str(base))))
        raise SubmissionAmbiguous("lost")

    cluster.after_submit = double

    job = await submit_once(cluster, ledger, order, grace=GRACE)

    assert job.job_id != doubled[0]
    await await_until(lambda: cancelled_on(cluster, doubled[0]), 20, "the end of the second job")
    assert not await cancelled_on(cluster, job.job_id)
    await cluster.cancel([job.job_id])


async def test_a_caller_that_goes_away_loses_nothing(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder
) -> None:
    submitted, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        submitted.set()
        await go_on.wait()

    cluster.after_submit = wait
    caller = asyncio.create_task(submit_once(cluster, ledger, order))
    await asyncio.wait_for(submitted.wait(), 10)
    caller.cancel()
    again = asyncio.create_task(submit_once(cluster, ledger, order, grace=0))
    with pytest.raises(TimeoutError):
        # sbatch of the first call may still answer: nobody else may submit.
        await asyncio.wait_for(asyncio.shield(again), 1)
    go_on.set()

    job = await asyncio.wait_for(again, 10)

    assert await jobs_of(cluster, order, ledger) == [job.job_id]


async def test_a_cancellation_before_the_submission_submits_nothing(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    cluster.before_submit = raising(SubmissionHeld("AssocMaxSubmitJobLimit"))
    told: list[str] = []

    def cancel(why: str) -> None:
        told.append(why)
        ledger.request_cancel(KEY.token)

    with pytest.raises(SubmissionCancelled):
        await submit_once(cluster, ledger, order, on_wait=cancel)

    assert "AssocMaxSubmitJobLimit" in told[0]
    assert row_of(ledger, order).status is SubmissionStatus.CANCELLED
    assert await jobs_of(cluster, order, ledger) == []
    assert files_below(base) == {}
    with pytest.raises(SubmissionCancelled):
        await submit_once(cluster, ledger, order)


async def test_a_cancellation_during_the_submission_cancels_the_job(
    cluster: FaultyCluster, ledger: Ledger, base: Path
) -> None:
    async def cancel() -> None:
        ledger.request_cancel(KEY.token)

    cluster.after_submit = cancel

    job = await submit_once(cluster, ledger, SubmissionOrder(ENDLESS, SlurmResources(), str(base), KEY))

    await await_until(lambda: cancelled_on(cluster, job.job_id), 20, "the job's end")


async def test_a_cancellation_while_the_job_is_looked_up_cancels_it_when_it_is_found(
    cluster: FaultyCluster, ledger: Ledger, base: Path
) -> None:
    cluster.after_submit = raising(SubmissionAmbiguous("lost"))
    order = SubmissionOrder(ENDLESS, SlurmResources(), str(base), KEY)

    def cancel(_why: str) -> None:
        ledger.request_cancel(KEY.token)

    job = await submit_once(cluster, ledger, order, on_wait=cancel, grace=GRACE)

    await await_until(lambda: cancelled_on(cluster, job.job_id), 20, "the job's end")


async def test_a_cancelled_intent_that_nobody_submits_is_settled(
    cluster: FaultyCluster, ledger: Ledger, base: Path
) -> None:
    order = SubmissionOrder(ENDLESS, SlurmResources(), str(base), KEY)
    lost = replace(order, key=SubmissionKey("lost", "script"))
    for each, hook in ((order, "after_submit"), (lost, "before_submit")):
        setattr(cluster, hook, raising(SubmissionAmbiguous("lost")))
        cluster.before_find = raising(*[ClusterUnreachable("away")] * 1000)
        await left_in_doubt(cluster, ledger, each)
        ledger.request_cancel(each.key.token)
    cluster.before_find = raising()

    job = await settle_cancelled(cluster, ledger, row_of(ledger, order), grace=GRACE)
    nothing = await settle_cancelled(cluster, ledger, row_of(ledger, lost), grace=GRACE)

    assert job is not None
    await await_until(lambda: cancelled_on(cluster, job.job_id), 20, "the job's end")
    assert nothing is None
    assert row_of(ledger, lost).status is SubmissionStatus.CANCELLED


async def left_in_doubt(cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder) -> None:
    """Submit an order whose answer is lost, and go away in that moment."""
    lost = asyncio.Event()
    caller = asyncio.create_task(submit_once(cluster, ledger, order, on_wait=lambda _why: lost.set()))
    await asyncio.wait_for(lost.wait(), 30)
    caller.cancel()
    await asyncio.wait([caller])


async def begun(cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder) -> None:
    """Leave an order's intent behind, as a worker does that dies just before sbatch."""
    cluster.before_submit = raising(RuntimeError("died"))
    with pytest.raises(RuntimeError, match="died"):
        await submit_once(cluster, ledger, order)
    assert row_of(ledger, order).status is SubmissionStatus.INTENT


async def test_what_was_begun_in_another_directory_or_as_somebody_else_is_not_gone_on_with(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(cluster, ledger, order)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    with pytest.raises(SubmissionRefused, match=f"begun as .* in {order.run_directory}") as refused:
        await submit_once(cluster, ledger, replace(order, directory=str(elsewhere)), grace=GRACE)
    assert refused.value.hint
    monkeypatch.setattr(FaultyCluster, "user", "somebody-else")
    with pytest.raises(SubmissionRefused, match="begun as"):
        await submit_once(cluster, ledger, order, grace=GRACE)
    monkeypatch.undo()

    assert files_below(elsewhere) == {}
    job = await submit_once(cluster, ledger, order, grace=GRACE)
    assert job.directory == order.run_directory


async def test_an_intent_that_is_settled_leaves_no_secret(
    cluster: FaultyCluster, ledger: Ledger, order: SubmissionOrder, base: Path
) -> None:
    await begun(cluster, ledger, replace(order, secret="s3cret"))
    secret = row_of(ledger, order).secret_path or ""
    assert files_below(base)[secret] == b"s3cret"
    ledger.request_cancel(KEY.token)

    assert await settle_cancelled(cluster, ledger, row_of(ledger, order), grace=GRACE) is None

    assert secret not in files_below(base)


@pytest.mark.parametrize("error", [FileRefused("a link"), AccountRefused("gone"), ClusterUnreachable("away")])
async def test_a_secret_that_cannot_be_removed_is_named_and_holds_up_nothing(
    cluster: FaultyCluster,
    ledger: Ledger,
    order: SubmissionOrder,
    error: SlurmError,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await begun(cluster, ledger, replace(order, secret="s3cret"))
    ledger.request_cancel(KEY.token)

    async def refuse(_cluster: Cluster, _directory: object, _paths: object, **_digests: object) -> None:
        raise error

    monkeypatch.setattr(FaultyCluster, "remove_files", refuse)

    assert await settle_cancelled(cluster, ledger, row_of(ledger, order), grace=GRACE) is None

    row = row_of(ledger, order)
    assert row.status is SubmissionStatus.CANCELLED
    assert (row.secret_path or "-") in caplog.text
    assert error.message in caplog.text


@pytest.fixture
async def slurm(slurm_cluster: SlurmCluster) -> AsyncIterator[CommandCluster]:
    yield CommandCluster(slurm_cluster.name, OwnAccountDoor(), slurm_conf=str(slurm_cluster.conf))
    slurm_cluster.run("scancel", "--user=root")


def of_name(slurm_cluster: SlurmCluster, order: SubmissionOrder) -> list[str]:
    """The ids of all jobs that Slurm has of an order: its controller knows them at once, and for five minutes."""
    name = f"{slurm_name(order.name)}-{order.key.token}"
    return slurm_cluster.run("squeue", "-h", "-t", "all", "-o", "%A", f"--name={name}").split()


async def accounted(slurm_cluster: SlurmCluster, job_name: str) -> None:
    async def there() -> bool:
        return bool(
            slurm_cluster.run("sacct", "-X", "-n", "-P", "-o", "JobID", f"--name={job_name}", "-S", "now-1hour")
        )

    await await_until(there, 60, "the job in accounting")


def an_order(base: Path) -> SubmissionOrder:
    return SubmissionOrder(SCRIPT, SlurmResources(), str(base), SubmissionKey.once())


@pytest.mark.slurm
async def test_a_controller_that_stops_in_the_middle_of_a_submission_gets_one_job(
    slurm_cluster: SlurmCluster, slurm: CommandCluster, ledger: Ledger, base: Path
) -> None:
    order = an_order(base)
    ambiguous = asyncio.Event()
    told: list[str] = []

    def wait(why: str) -> None:
        told.append(why)
        ambiguous.set()

    slurm_cluster.pause("slurmctld")
    try:
        submitting = asyncio.create_task(submit_once(slurm, ledger, order, on_wait=wait))
        await asyncio.wait_for(ambiguous.wait(), 60)
    finally:
        slurm_cluster.resume("slurmctld")
    job = await asyncio.wait_for(submitting, 90)

    assert "answer was lost" in told[0]
    assert of_name(slurm_cluster, order) == [job.job_id]


@pytest.mark.slurm
async def test_a_process_killed_after_sbatch_leaves_one_job_on_slurm(
    slurm_cluster: SlurmCluster, slurm: CommandCluster, ledger: Ledger, order: SubmissionOrder, tmp_path: Path
) -> None:
    order = replace(order, key=KEY)
    died = await ended(another_process(tmp_path, "dies", slurm_cluster.name, str(slurm_cluster.conf)))
    assert died[0] == -signal.SIGKILL, died

    job = await submit_once(slurm, ledger, order)

    assert of_name(slurm_cluster, order) == [job.job_id]


@pytest.mark.slurm
async def test_where_accounting_has_no_witness_one_is_made_before_an_old_intent_is_submitted_again(
    slurm_cluster: SlurmCluster, slurm: CommandCluster, ledger: Ledger, base: Path
) -> None:
    order = an_order(base)
    told: list[str] = []
    ledger.intend(an_old_intent(order, slurm))
    assert ledger.witness(slurm.name, slurm.user) is None

    job = await asyncio.wait_for(submit_once(slurm, ledger, order, on_wait=told.append, grace=GRACE), 60)

    assert of_name(slurm_cluster, order) == [job.job_id]
    assert ledger.witness(slurm.name, slurm.user) is not None
    assert "proves nothing" in told[0]


@pytest.mark.slurm
async def test_an_accounting_whose_database_fails_proves_no_absence(
    slurm_cluster: SlurmCluster, slurm: CommandCluster, ledger: Ledger, base: Path
) -> None:
    first, order = an_order(base), an_order(base)
    witness = await submit_once(slurm, ledger, first)
    await accounted(slurm_cluster, row_of(ledger, first).name_in_slurm)
    ledger.mark_final(witness.key, "Completed", "", accounted=True)
    ledger.intend(an_old_intent(order, slurm))
    unproved = asyncio.Event()
    slurm_cluster.stop_service("mariadbd")
    try:
        submitting = asyncio.create_task(
            submit_once(slurm, ledger, order, on_wait=lambda _why: unproved.set(), grace=GRACE)
        )
        await asyncio.wait_for(unproved.wait(), 60)
        assert of_name(slurm_cluster, order) == []
    finally:
        slurm_cluster.start_service("mariadbd")
    job = await asyncio.wait_for(submitting, 120)

    assert of_name(slurm_cluster, order) == [job.job_id]


@pytest.mark.slurm
async def test_a_limit_of_slurms_is_waited_for_and_such_a_wait_can_be_cancelled(
    slurm_cluster: SlurmCluster, slurm: CommandCluster, ledger: Ledger, base: Path
) -> None:
    order = an_order(base)
    told: list[str] = []

    def cancel(why: str) -> None:
        told.append(why)
        ledger.request_cancel(order.key.token)

    slurm_cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=0")
    try:
        with pytest.raises(SubmissionCancelled):
            await asyncio.wait_for(submit_once(slurm, ledger, order, on_wait=cancel), 60)
    finally:
        slurm_cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")

    assert "limit" in told[0]
    assert of_name(slurm_cluster, order) == []


@pytest.mark.slurm
async def test_what_slurm_refuses_is_refused_with_its_own_words(
    slurm: CommandCluster, ledger: Ledger, base: Path
) -> None:
    with pytest.raises(SubmissionRefused, match=r"invalid partition specified: nowhere"):
        await submit_once(slurm, ledger, replace(an_order(base), resources=SlurmResources(partition="nowhere")))

    assert files_below(base) == {}


def an_old_intent(order: SubmissionOrder, cluster: Cluster) -> Submission:
    """What a worker left that died an hour ago, before sbatch."""
    key = order.key
    return Submission(
        key=key.token, scope=key.scope, call=key.call, attempt=key.attempt, cluster=cluster.name, user=cluster.user,
        job_name=order.name, script_digest=order.script.digest, directory=order.run_directory,
        intent_at=datetime.now(UTC) - timedelta(hours=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("script", "resources", "argument"),
    [
        ("#!/bin/bash\n", {}, "--no-requeue"),
        ("#!/bin/bash\n#SBATCH --requeue\n", {}, "--requeue"),
        ("#!/bin/bash\n#SBATCH --requeue\n", {"requeue": False}, "--no-requeue"),
        ("#!/bin/bash\n", {"requeue": True}, "--requeue"),
    ],
)
def test_whether_a_job_may_be_requeued_is_always_said_and_the_script_may_say_it(
    script: str, resources: dict[str, Any], argument: str
) -> None:
    order = SubmissionOrder(
        JobScript(name="job", text=script), SlurmResources(**resources), "/tmp", SubmissionKey.once()
    )
    assert [word for word in order.arguments if "requeue" in word] == [argument]
