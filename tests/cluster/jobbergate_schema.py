"""Make the tables of the Jobbergate API in its database; for the API's own Python, with its environment variables.

Its migrations are not in its wheel, and need TimescaleDB. The views are those of its migration 99c3877d0f10, made when
they are read instead of in the background.
"""

from __future__ import annotations

import asyncio

# It imports all models.
import jobbergate_api.main  # type: ignore[import-not-found]  # noqa: F401
from jobbergate_api.apps.models import Base  # type: ignore[import-not-found]
from jobbergate_api.storage import build_db_url  # type: ignore[import-not-found]
from sqlalchemy.ext.asyncio import create_async_engine

_WIDTHS = ("10 seconds", "1 minute", "10 minutes", "1 hour", "1 week")
_VIEW = """
CREATE VIEW metrics_nodes_mv_{width}_{nodes} AS
SELECT job_submission_id, node_host, date_bin('{interval}', time, TIMESTAMPTZ '2000-01-03 00:00:00+00') AS bucket,
    AVG(cpu_frequency) AS cpu_frequency, SUM(cpu_time) AS cpu_time, AVG(cpu_utilization) AS cpu_utilization,
    AVG(gpu_memory) AS gpu_memory, AVG(gpu_utilization) AS gpu_utilization, SUM(page_faults) AS page_faults,
    AVG(memory_rss) AS memory_rss, AVG(memory_virtual) AS memory_virtual,
    SUM(disk_read) AS disk_read, SUM(disk_write) AS disk_write
FROM job_submission_metrics
GROUP BY job_submission_id, node_host, bucket
"""


async def make() -> None:
    engine = create_async_engine(build_db_url())
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        for interval in _WIDTHS:
            # Of both it groups by node, whatever their names say.
            for nodes in ("by_node", "all_nodes"):
                view = _VIEW.format(width=interval.replace(" ", "_"), nodes=nodes, interval=interval)
                await connection.exec_driver_sql(view)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(make())
