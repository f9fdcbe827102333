"""What all tests share: folders of their own, and the real services."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before Prefect is imported anywhere: no test sees the profile, the ledger or the state of whoever runs it.
_HOME = Path(tempfile.mkdtemp(prefix="jobbergate-flows-tests-"))
for name in [name for name in os.environ if name.startswith(("PREFECT", "SLURM", "SBATCH", "JOBBERGATE"))]:
    if name != "JOBBERGATE_FLOWS_REQUIRE_SLURM":
        del os.environ[name]
with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    _PORT = int(_probe.getsockname()[1])
os.environ |= {
    "PREFECT_API_URL": f"http://127.0.0.1:{_PORT}/api",
    "PREFECT_HOME": str(_HOME / "prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "JOBBERGATE_FLOWS_STATE_DIR": str(_HOME / "state"),
    "JOBBERGATE_FLOWS_LEDGER": str(_HOME / "state" / "ledger.sqlite3"),
}

from tests.cluster.prefect_server import PrefectServer  # noqa: E402
from tests.cluster.slurm import SlurmCluster, missing  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-slurm", action="store_true", help="fail where real Slurm is missing")


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_cluster(request: pytest.FixtureRequest) -> Iterator[SlurmCluster]:
    """The real Slurm, for the whole session."""
    lacking = missing()
    if lacking:
        required = request.config.getoption("--require-slurm") or os.environ.get("JOBBERGATE_FLOWS_REQUIRE_SLURM")
        (pytest.fail if required else pytest.skip)(f"no real Slurm here: {', '.join(lacking)} missing")
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[PrefectServer]:
    """A real Prefect server, for the whole session."""
    with PrefectServer(_PORT) as server:
        yield server
