"""The mirror: each run of the worker is also a job script and a job submission in Jobbergate, where that is wanted.

What happens to a job is written into the ledger (`observer`), told from there (`teller`), and shown in the run
(`showing`). Its metrics follow (`measuring`). What somebody cancels in Jobbergate is cancelled in Slurm (`cancelling`).
"""

from __future__ import annotations

from prefect.client.schemas.objects import FlowRun
from prefect.utilities.urls import url_for

from agent_worker.jobbergate.cancelling import watch_for_wishes
from agent_worker.jobbergate.clients import JobbergateClients
from agent_worker.jobbergate.measuring import Measures
from agent_worker.jobbergate.observer import JobbergateObserver
from agent_worker.jobbergate.showing import show_submissions
from agent_worker.jobbergate.teller import Teller
from agent_worker.settings import WorkerSettings
from agent_worker.supervisor import Supervisor
from jobbergate_flows.blocks.metrics import InfluxMetrics
from jobbergate_flows.job_metrics import configured_reader
from jobbergate_flows.jobbergate.links import Links
from jobbergate_flows.metrics.reading import MetricsReader
from jobbergate_flows.slurm.session import ClusterSession


def observer_of(session: ClusterSession, flow_run: FlowRun, api: str | None) -> JobbergateObserver:
    """Who hears of the jobs of a run.

    Args:
        api: The name of the `JobbergateAPI` block of its mirrors; None or empty for none.
    """
    page = url_for("flow-run", obj_id=flow_run.id)
    return JobbergateObserver(Links(session.ledger), str(flow_run.id), api or None, page)


def add_mirror(
    supervisor: Supervisor,
    clients: JobbergateClients,
    settings: WorkerSettings,
    agents_metrics: InfluxMetrics | None = None,
) -> None:
    """Have a worker tell Jobbergate, and listen to it. To be called before the supervisor starts.

    Args:
        agents_metrics: Where Slurm's metrics are, by the agent's settings; the worker's own setting comes first.
    """

    async def agents_reader() -> MetricsReader | None:
        return agents_metrics.reader() if agents_metrics is not None else None

    measured = settings.metrics is not None or agents_metrics is not None
    reader_of = configured_reader if settings.metrics is not None else agents_reader
    teller = Teller(
        lambda: supervisor.session.ledger,
        clients,
        closes=not measured,
        cluster=lambda: supervisor.session.cluster.name,
    )
    supervisor.add_service(teller.run)
    supervisor.add_service(lambda: show_submissions(supervisor, clients))
    if measured:
        supervisor.add_service(Measures(supervisor, clients, settings.jobbergate_seconds, reader_of).run)
    supervisor.add_service(lambda: watch_for_wishes(supervisor, clients, settings.jobbergate_seconds))
