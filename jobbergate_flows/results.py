"""Bringing a run's results: from Python, on any host that reaches the run's cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.utilities.asyncutils import run_coro_as_sync

from jobbergate_flows.blocks.cluster import SlurmCluster
from jobbergate_flows.run_labels import RunHasNoJob, job_of
from jobbergate_flows.sessions import session_for
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.results import fetch

Run = FlowRun | SlurmJob | UUID | str


async def afetch_results(
    run: Run,
    pattern: str | Sequence[str] = (),
    to: str | Path = ".",
    *,
    cluster: SlurmCluster | str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Bring a run's result files. The async twin of `fetch_results`."""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    session = await session_for(cluster)
    job, own = (run, ()) if isinstance(run, SlurmJob) else job_of(await _read(run))
    if job.cluster != session.cluster.name:
        raise ClusterUnreachable(
            f"the job is on the cluster {job.cluster}, and this is {session.cluster.name}",
            where=f"job {job.job_id}",
            hint="go to a host of that cluster, or name its SlurmCluster block",
        )
    found = await session.results(job, patterns or own, digest_below=0)
    return await fetch(session.cluster, job, found.files, _folder(to), overwrite=overwrite)


def fetch_results(
    run: Run,
    pattern: str | Sequence[str] = (),
    to: str | Path = ".",
    *,
    cluster: SlurmCluster | str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Bring a run's result files to this machine, through the cluster's own door: with the rights of who calls it.

    Each file appears whole, with its time, or not at all. One that is there already is left alone.

    Args:
        run: A flow run, its id, or a job that `submit_job_script` returned.
        pattern: Which files, as in a `.gitignore`; otherwise those that the application names as its results, or all
            that the job has left.
        to: A folder of this machine; made where it is missing.
        cluster: A `SlurmCluster` block or its name; otherwise this machine's cluster.
        overwrite: Replace files that are there with another content.

    Returns:
        The files' paths.

    Raises:
        RunHasNoJob: The run is not there, or has submitted nothing.
        FileRefused: A file is there already, or cannot be read or written.
        ClusterUnreachable: The job is on another cluster, or this one does not answer.
    """
    return run_coro_as_sync(afetch_results(run, pattern, to, cluster=cluster, overwrite=overwrite))


def _folder(to: str | Path) -> Path:
    return Path(to).expanduser()


async def _read(run: FlowRun | UUID | str) -> FlowRun:
    if isinstance(run, FlowRun):
        run = run.id
    try:
        run_id = UUID(str(run))
        async with get_client() as client:
            return await client.read_flow_run(run_id)
    except ValueError as error:
        raise RunHasNoJob(
            f"{str(run)[:100]!r} is no run's id", hint="the UI and `prefect flow-run ls` show it"
        ) from error
    except ObjectNotFound as error:
        raise RunHasNoJob(f"the server has no flow run {run}", hint="`prefect flow-run ls` shows its runs") from error
