"""What all tests share: folders of their own, and the real services."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

_HOME = Path(tempfile.mkdtemp(prefix="jobbergate-flows-tests-"))
_REQUIRE_SLURM = "JOBBERGATE_FLOWS_REQUIRE_SLURM"
_FOREIGN = ("PREFECT", "SLURM", "SBATCH", "SQUEUE", "SACCT", "JOBBERGATE", "XDG_", "OIDC_", "BASE_API_URL", "ARMADA_")


def _isolate() -> None:
    """No test sees the profile, the ledger or the cluster of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN) and name != _REQUIRE_SLURM:
            del os.environ[name]
    os.environ |= {
        "HOME": str(_HOME),
        "PREFECT_HOME": str(_HOME / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "JOBBERGATE_FLOWS_STATE_DIR": str(_HOME / "state"),
        "JOBBERGATE_FLOWS_LEDGER": str(_HOME / "state" / "ledger.sqlite3"),
    }
    # A script that starts the tests in the background has it ignored; a worker that inherits that, and ends itself by
    # it, has to be killed.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Prefect reads its settings when it is imported.
_isolate()

from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402

from tests.cluster.accounts import Accounts, missing_for_accounts  # noqa: E402
from tests.cluster.guard import guard  # noqa: E402
from tests.cluster.influxdb import InfluxServer  # noqa: E402
from tests.cluster.influxdb import missing as missing_influxdb  # noqa: E402
from tests.cluster.jobbergate_api import JobbergateApi, missing_for_jobbergate_api, running_api  # noqa: E402
from tests.cluster.jobbergate_cli import JobbergateCli, missing_for_jobbergate_cli  # noqa: E402
from tests.cluster.postgres import PostgresServer, missing_for_postgres  # noqa: E402
from tests.cluster.prefect_server import PrefectServer  # noqa: E402
from tests.cluster.site import Site, running_site  # noqa: E402
from tests.cluster.slurm import (  # noqa: E402
    SlurmCluster,
    missing,
    missing_for_memory_limits,
    missing_for_profile,
)

pytest_plugins = ["tests.ledgers"]
guard.watch("folder", str(_HOME))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-slurm", action="store_true", help=f"fail where real Slurm is missing (or set {_REQUIRE_SLURM}=1)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The marker and the fixture are the same, so that `-m "not slurm"` leaves out all that need Slurm.
    for item in items:
        if isinstance(item, pytest.Function):
            if {"slurm_cluster", "profiled_cluster"} & set(item.fixturenames):
                item.add_marker("slurm")
            elif item.get_closest_marker("slurm"):
                item.fixturenames.insert(0, "slurm_cluster")
    # The machine has its accounts once: all files that use them go to the same process.
    alone = {item.path for item in items if "accounts" in getattr(item, "fixturenames", ())}
    for item in items:
        if item.path in alone:
            item.add_marker(pytest.mark.xdist_group("accounts"))


class _ByFile(LoadGroupScheduling):  # type: ignore[misc]
    """Tests of one file share what the file makes, so that they stay together."""

    def _split_scope(self, nodeid: str) -> str:
        group: str = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if group == nodeid else group


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadGroupScheduling:
    """Where tests run in several processes: `scripts/test`."""
    return _ByFile(config, log)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
    guard.forget("folder", str(_HOME))


@pytest.fixture(scope="session")
def slurm_cluster(request: pytest.FixtureRequest) -> Iterator[SlurmCluster]:
    """The real Slurm, for the whole session."""
    _need(request, "no real Slurm here", missing())
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def memory_limits(request: pytest.FixtureRequest) -> None:
    """That a Slurm of its own can limit its jobs' memory here."""
    if lacking := missing_for_memory_limits():
        # Elsewhere it is Slurm's word alone: see `SlurmCluster.end_out_of_memory`.
        pytest.skip(f"no limits on memory here: {', '.join(lacking)} missing")


@pytest.fixture(scope="session")
def influx_server(request: pytest.FixtureRequest) -> Iterator[InfluxServer]:
    """A real InfluxDB, for the whole session."""
    _need(request, "no real InfluxDB here", missing_influxdb())
    with InfluxServer() as server:
        yield server


@pytest.fixture(scope="module")
def profiled_cluster(request: pytest.FixtureRequest, influx_server: InfluxServer) -> Iterator[SlurmCluster]:
    """A real Slurm of its own, which writes its jobs' metrics to `influx_server`."""
    _need(request, "no real Slurm with metrics here", missing_for_profile())
    with SlurmCluster("profiled", profile=influx_server) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounts(request: pytest.FixtureRequest) -> Iterator[Accounts]:
    """Real accounts of this machine, for the whole session."""
    _need(request, "no accounts can be made here", missing_for_accounts())
    with Accounts() as made:
        yield made


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A real PostgreSQL, for the whole session."""
    _need(request, "no PostgreSQL here", missing_for_postgres())
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def jobbergate_api(request: pytest.FixtureRequest) -> Iterator[JobbergateApi]:
    """The real Jobbergate API, for the whole session."""
    _need(request, "no Jobbergate API here", missing_for_jobbergate_api())
    with running_api(request.getfixturevalue("postgres")) as api:
        yield api


@pytest.fixture(scope="session")
def jobbergate_cli_command(request: pytest.FixtureRequest) -> None:
    """That the released CLI is there, without an API to talk to."""
    _need(request, "no Jobbergate CLI here", missing_for_jobbergate_cli())


@pytest.fixture(scope="session")
def jobbergate_cli(
    jobbergate_cli_command: None, jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory
) -> JobbergateCli:
    """The released command line of Jobbergate, in which Ada is logged in."""
    made = JobbergateCli(jobbergate_api, tmp_path_factory.mktemp("jobbergate-cli"))
    made.login()
    return made


def _need(request: pytest.FixtureRequest, what: str, lacking: list[str]) -> None:
    if lacking:
        required = request.config.getoption("--require-slurm") or os.environ.get(_REQUIRE_SLURM)
        (pytest.fail if required else pytest.skip)(f"{what}: {', '.join(lacking)} missing")


@pytest.fixture(scope="session")
def prefect_server(request: pytest.FixtureRequest) -> Iterator[PrefectServer]:
    """A real Prefect server for the whole session, to which the tests' own clients talk from then on.

    Where there is a PostgreSQL it has that: on SQLite it now and then answers nobody for a minute.
    """
    database = None
    if not missing_for_postgres():
        postgres: PostgresServer = request.getfixturevalue("postgres")
        postgres.create_database("prefect")
        database = postgres.url("asyncpg", "prefect")
    with PrefectServer(database=database) as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        yield server


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="session")
async def site(slurm_cluster: SlurmCluster, prefect_server: PrefectServer, site_folder: Path) -> AsyncIterator[Site]:
    """One site for the whole session."""
    async with running_site(slurm_cluster, prefect_server, site_folder, "slurm-test") as made:
        yield made
