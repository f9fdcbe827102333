"""What all tests share: folders of their own, and the real services."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="jobbergate-flows-tests-"))
_REQUIRE_SLURM = "JOBBERGATE_FLOWS_REQUIRE_SLURM"
_FOREIGN = ("PREFECT", "SLURM", "SBATCH", "SQUEUE", "SACCT", "JOBBERGATE", "XDG_")


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


# Prefect reads its settings when it is imported.
_isolate()

from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402

from tests.cluster.guard import guard  # noqa: E402
from tests.cluster.prefect_server import PrefectServer  # noqa: E402
from tests.cluster.slurm import SlurmCluster, missing  # noqa: E402

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
            if "slurm_cluster" in item.fixturenames:
                item.add_marker("slurm")
            elif item.get_closest_marker("slurm"):
                item.fixturenames.insert(0, "slurm_cluster")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
    guard.forget("folder", str(_HOME))


@pytest.fixture(scope="session")
def slurm_cluster(request: pytest.FixtureRequest) -> Iterator[SlurmCluster]:
    """The real Slurm, for the whole session."""
    lacking = missing()
    if lacking:
        required = request.config.getoption("--require-slurm") or os.environ.get(_REQUIRE_SLURM)
        (pytest.fail if required else pytest.skip)(f"no real Slurm here: {', '.join(lacking)} missing")
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[PrefectServer]:
    """A real Prefect server for the whole session, to which the tests' own clients talk from then on."""
    with PrefectServer() as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        yield server
