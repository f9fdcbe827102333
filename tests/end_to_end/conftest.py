"""What all end-to-end tests begin with."""

from __future__ import annotations

import pytest

from tests.cluster.site import Site


@pytest.fixture(autouse=True)
def a_worker_that_runs(site: Site) -> None:
    """A test may have ended it."""
    if site.worker.process is None:
        site.worker.start()
