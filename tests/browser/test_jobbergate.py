"""A mirrored run in Prefect's UI: where people find its job submission, and what a site fills in."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobbergate_flows.jobbergate.client import JobbergateClient
from tests.browser.chromium import Chromium
from tests.browser.test_pages import artifact
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site
from tests.end_to_end.test_mirror import api, mirrored, start_both, the_end_of, until_running

pytestmark = [pytest.mark.slurm, pytest.mark.browser]
__all__ = ["api", "mirrored"]


async def test_a_run_shows_its_job_submission(
    mirrored: Site,
    api: JobbergateClient,
    browser: Chromium,
    prefect_server: PrefectServer,
    tmp_path: Path,
) -> None:
    runs = await start_both(mirrored, tmp_path, ends=True)
    await until_running(tmp_path)
    run = runs["application"]
    submission = await the_end_of(api, mirrored, run)
    ui = prefect_server.url
    page = await artifact(run, "job-submission")
    browser.open(f"{ui}/artifacts/artifact/{page.id}", f"Job submission {submission.id} in Jobbergate")
    browser.wait_for_text(f"{api.base_url}/jobbergate/job-submissions/{submission.id}")
    browser.open(f"{ui}/work-pools/work-pool/{mirrored.pool}/edit", "Jobbergate API")
