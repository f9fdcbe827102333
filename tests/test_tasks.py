"""The tasks, in flows of anybody's and in a plain script."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.context import FlowRunContext

from jobbergate_flows import applications
from jobbergate_flows.applications import Application, BadAnswer, JobScript
from jobbergate_flows.blocks import SlurmCluster
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.results import fetch_results
from jobbergate_flows.run_labels import RunHasNoJob
from jobbergate_flows.sessions import using_session
from jobbergate_flows.slurm.deputy_door import DeputyDoor, OwnAccount
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.errors import DirectoryRefused, OptionRefused
from jobbergate_flows.slurm.ledger import Ledger
from jobbergate_flows.slurm.local_cluster import LocalCluster
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.states import JobFailed
from jobbergate_flows.tasks import (
    ParallelSubmissions,
    WrongArgument,
    acancel_job,
    arender_job_script,
    asubmit_job_script,
    await_for_job,
    cancel_job,
    publish_results,
    render_job_script,
    submit_job_script,
    wait_for_job,
)
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import script_application
from tests.cluster.waiting import await_until

STUDY = Path(__file__).parents[1] / "examples" / "parameter-study"
LOCAL = SlurmCluster(access="local")
RENDERER = (sys.executable, str(Path(applications.__file__).parent / "child" / "program.py"))


def script(text: str) -> JobScript:
    return JobScript(name="job", text=f"#!/bin/bash\n{text}\n")


@pytest.fixture(autouse=True)
def _a_server(prefect_server: PrefectServer) -> None:
    """Tasks tell a server of themselves."""


def test_in_a_sync_flow_a_job_is_rendered_submitted_and_waited_for(tmp_path: Path) -> None:
    @flow
    def study() -> str:
        rendered = render_job_script(STUDY, {"damping_points": 2})
        job = submit_job_script(rendered, directory=tmp_path, cluster=LOCAL)
        status = wait_for_job(job, cluster=LOCAL)
        publish_results(job, cluster=LOCAL)
        assert (Path(job.directory) / "results.csv").is_file()
        return str(status.name)

    assert study() == "Completed"


def test_a_cluster_is_a_saved_block_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the block's word this would not be the local cluster.
    monkeypatch.setenv("JOBBERGATE_FLOWS_CLUSTER", "slurm")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "nowhere.conf"))
    LOCAL.save("site", overwrite=True)

    @flow
    def study() -> str:
        job = submit_job_script(script("touch here"), directory=tmp_path, cluster="site")
        status = wait_for_job(job, cluster="site")
        assert (Path(job.directory) / "here").is_file()
        return str(status.name)

    assert study() == "Completed"
    with pytest.raises(ValueError, match="nobodys-site"):
        submit_job_script(script("true"), directory=tmp_path, cluster="nobodys-site")


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (
            lambda: submit_job_script("echo", directory="/tmp", cluster=LOCAL),
            WrongArgument,
            "script is str, not Job",
        ),
        (lambda: submit_job_script(script(""), resources=[1], cluster=LOCAL), OptionRefused, "resources are list"),
        (lambda: render_job_script(STUDY, [1]), BadAnswer, "answers are list, no mapping"),
        (lambda: render_job_script(5), WrongArgument, "application is int"),
        (lambda: wait_for_job("7", cluster=LOCAL), WrongArgument, "job is str, not SlurmJob"),
        (lambda: cancel_job(7, cluster=LOCAL), WrongArgument, "job is int, not SlurmJob"),
        (lambda: publish_results(None, cluster=LOCAL), WrongArgument, "job is NoneType, not SlurmJob"),
    ],
)
def test_an_argument_of_another_type_is_told_by_its_name(
    call: Callable[[], object], kind: type[JobbergateFlowsError], says: str
) -> None:
    with pytest.raises(kind, match=says) as refused:
        call()

    assert refused.value.hint


def test_a_refused_submission_is_logged_without_an_empty_traceback(tmp_path: Path) -> None:
    written = io.StringIO()
    logger, handler = logging.getLogger("prefect.task_runs"), logging.StreamHandler(written)
    logger.addHandler(handler)
    try:
        with pytest.raises(DirectoryRefused):
            submit_job_script(script("echo"), directory=tmp_path / "nowhere", cluster=LOCAL)
    finally:
        logger.removeHandler(handler)

    assert "Task run failed" in written.getvalue()
    assert "NoneType" not in written.getvalue()


async def test_in_an_async_flow_too(tmp_path: Path) -> None:
    @flow
    async def study() -> str:
        rendered = await arender_job_script(STUDY, {"damping_points": 2})
        job = await asubmit_job_script(rendered, directory=tmp_path, cluster=LOCAL)
        return str((await await_for_job(job, cluster=LOCAL)).name)

    assert await study() == "Completed"


def test_in_a_plain_script_each_call_is_a_job_of_its_own(tmp_path: Path) -> None:
    first = submit_job_script(script("true"), directory=tmp_path, cluster=LOCAL)
    second = submit_job_script(script("true"), directory=tmp_path, cluster=LOCAL)
    assert first.job_id != second.job_id
    assert wait_for_job(first, cluster=LOCAL).name == wait_for_job(second, cluster=LOCAL).name == "Completed"


def test_a_failed_job_raises_with_its_status_and_names_its_task_run(tmp_path: Path) -> None:
    job = submit_job_script(script("exit 7"), directory=tmp_path, cluster=LOCAL)
    with pytest.raises(JobFailed, match="exit code 7") as failed:
        wait_for_job(job, cluster=LOCAL)
    assert str(failed.value.status.exit_code) == "7:0"
    state = wait_for_job.with_options(name="again")(job, cluster=LOCAL, return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Failed")


def test_the_future_of_a_failed_job_raises_as_well(tmp_path: Path) -> None:
    @flow
    def study() -> None:
        job = submit_job_script(script("exit 7"), directory=tmp_path, cluster=LOCAL)
        wait_for_job.submit(job, cluster=LOCAL).result()

    with pytest.raises(JobFailed, match="exit code 7"):
        study()


async def test_a_failed_job_raises_in_async_code_too(tmp_path: Path) -> None:
    job = await asubmit_job_script(script("exit 7"), directory=tmp_path, cluster=LOCAL)
    with pytest.raises(JobFailed, match="exit code 7"):
        await await_for_job(job, cluster=LOCAL)


def test_a_cancelled_job_ends_its_task_run_cancelled(tmp_path: Path) -> None:
    job = submit_job_script(script("exec sleep 300"), directory=tmp_path, cluster=LOCAL)
    cancel_job(job, cluster=LOCAL)
    state = wait_for_job(job, cluster=LOCAL, return_state=True)
    assert state.type.value == "CANCELLED"


async def test_cancelling_an_ended_job_is_no_error(tmp_path: Path) -> None:
    job = await asubmit_job_script(script("true"), directory=tmp_path, cluster=LOCAL)
    await await_for_job(job, cluster=LOCAL)
    await acancel_job(job, cluster=LOCAL)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"directory": "/no/such/folder"}, DirectoryRefused),
        ({"resources": {"tasks": 0}}, OptionRefused),
        ({"resources": {"taks": 1}}, OptionRefused),
    ],
)
def test_what_cannot_be_submitted_is_raised_before_anything_is(
    tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        submit_job_script(script("true"), **{"directory": tmp_path, "cluster": LOCAL, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_answer_is_raised_with_its_question() -> None:
    with pytest.raises(BadAnswer, match="Processes at once"):
        render_job_script(STUDY, {"cpus": 1000})


def test_parallel_submissions_need_keys(tmp_path: Path) -> None:
    @flow
    def careless() -> None:
        futures = [
            submit_job_script.submit(script(f"echo {number}"), directory=tmp_path, cluster=LOCAL) for number in range(8)
        ]
        for future in futures:
            future.result()

    @flow
    def careful() -> set[str]:
        futures = [
            submit_job_script.submit(script("true"), directory=tmp_path, cluster=LOCAL, key=f"part-{number}")
            for number in range(4)
        ]
        return {future.result().job_id for future in futures}

    with pytest.raises(ParallelSubmissions, match="key="):
        careless()
    assert len(careful()) == 4


def test_a_flow_that_is_run_again_gets_the_job_of_its_first_life(tmp_path: Path) -> None:
    jobs = []

    @flow(retries=1)
    def crashing() -> None:
        job = submit_job_script(script("sleep 1"), directory=tmp_path, cluster=LOCAL)
        jobs.append(job.job_id)
        if len(jobs) == 1:
            raise RuntimeError("between submission and end")
        wait_for_job(job, cluster=LOCAL)

    crashing()
    assert len(jobs) == 2
    assert jobs[0] == jobs[1]


def test_what_a_run_has_left_is_published_and_can_be_brought(tmp_path: Path) -> None:
    here = tmp_path / "here"

    @flow
    def study() -> UUID:
        made = script("echo a,b > sums.csv; echo 1,2 >> sums.csv; echo no > notes.txt; mkdir d; echo x > d/deep.csv")
        job = submit_job_script(made.model_copy(update={"result_files": ("*.csv",)}), directory=tmp_path, cluster=LOCAL)
        wait_for_job(job, cluster=LOCAL)
        publish_results(job, cluster=LOCAL)
        fetch_results(job, "*.txt", here, cluster=LOCAL)
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        return context.flow_run.id

    run_id = study()

    assert [path.name for path in here.iterdir()] == ["notes.txt"]
    (page,) = artifacts(run_id, "study-results")
    assert "| a | b |\n|---|---|\n| 1 | 2 |" in page
    assert "d/deep.csv" in page
    assert "notes.txt" not in page
    brought = fetch_results(run_id, to=here, cluster=LOCAL)
    assert [str(path.relative_to(here)) for path in brought] == ["d/deep.csv", "sums.csv"]


def test_a_run_that_names_no_job_has_no_results(tmp_path: Path) -> None:
    @flow
    def idle() -> UUID:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        return context.flow_run.id

    with pytest.raises(RunHasNoJob, match="names no job"):
        fetch_results(idle(), cluster=LOCAL)
    with pytest.raises(RunHasNoJob, match="the server has no flow run"):
        fetch_results(uuid4(), cluster=LOCAL)
    with pytest.raises(RunHasNoJob, match="no run's id"):
        fetch_results("my run", cluster=LOCAL)


def artifacts(run_id: UUID, key: str) -> list[Any]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[key])
            )
        )
    return [artifact.data for artifact in found]


@pytest.fixture
def slow(tmp_path: Path) -> Application:
    """Renders once there is a file `go`; makes a file `begun` when it begins to wait for it."""
    begun, go = str(tmp_path / "begun"), str(tmp_path / "go")
    waits = f"(__import__('time').sleep(0.05) for _ in iter(lambda: __import__('os').path.exists({go!r}), True))"
    return script_application(tmp_path, "slow", "#!/bin/sh\n", f"[open({begun!r}, 'w').close(), *{waits}][:0]")


# More than the threads of any event loop's own.
MANY = 40


async def test_slow_applications_of_one_user_hold_up_no_other(slow: Application, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.sqlite3")
    doors = [DeputyDoor(OwnAccountDoor().user, OwnAccount(), renderer=RENDERER) for _user in range(2)]
    one, other = (ClusterSession(LocalCluster(root=tmp_path), ledger, serve=door.render) for door in doors)
    try:
        with using_session(one):
            waiting = [asyncio.create_task(arender_job_script(slow)) for _ in range(MANY)]
        async with asyncio.timeout(20):
            await _begun(tmp_path)
            with using_session(other):
                rendered = await arender_job_script(STUDY, {"damping_points": 2})
            assert rendered.text.startswith("#!")
            for door in doors:
                assert await door.list_files(str(tmp_path / "slow"))
        assert not any(task.done() for task in waiting)
        (tmp_path / "go").touch()
        assert [script.text for script in await asyncio.gather(*waiting)] == ["#!/bin/sh\n"] * MANY
    finally:
        for door in doors:
            await door.close()
        ledger.close()


async def test_slow_applications_of_the_own_account_hold_up_nothing_else(slow: Application, tmp_path: Path) -> None:
    waiting = [asyncio.create_task(arender_job_script(slow)) for _ in range(MANY)]
    async with asyncio.timeout(20):
        await _begun(tmp_path)
        assert await OwnAccountDoor().list_files(str(tmp_path / "slow"))
    assert not any(task.done() for task in waiting)
    (tmp_path / "go").touch()
    assert [script.text for script in await asyncio.gather(*waiting)] == ["#!/bin/sh\n"] * MANY


async def _begun(folder: Path) -> None:
    async def begun() -> bool:
        return (folder / "begun").exists()

    await await_until(begun, 20, "the first rendering")
