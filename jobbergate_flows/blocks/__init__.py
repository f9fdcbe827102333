"""The Prefect block types of this package."""

from __future__ import annotations

from prefect.utilities.asyncutils import run_coro_as_sync

from jobbergate_flows.blocks.application import StoredApplication
from jobbergate_flows.blocks.cluster import SlurmCluster
from jobbergate_flows.blocks.documents import BLOCK_TYPES, save_documents
from jobbergate_flows.blocks.jobbergate import JobbergateAPI
from jobbergate_flows.blocks.metrics import InfluxMetrics


def register() -> list[str]:
    """Register the block types with the Prefect server and return their names.

    Raises:
        httpx.HTTPError: The server cannot be reached.
    """
    for block in BLOCK_TYPES:
        run_coro_as_sync(block.aregister_type_and_schema())
    return [block.get_block_type_slug() for block in BLOCK_TYPES]


__all__ = [
    "BLOCK_TYPES",
    "InfluxMetrics",
    "JobbergateAPI",
    "SlurmCluster",
    "StoredApplication",
    "register",
    "save_documents",
]
