"""What a flow on a node needs to know, and nobody else: the API key, and what a secret block holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prefect.blocks.system import Secret

from tests.cluster.events import await_events
from tests.cluster.site import API_KEY, Site, message
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow

VALUE = "a-v3ry-s3cret-value"
SECRETS = (API_KEY.encode(), VALUE.encode())


@pytest.fixture
async def token() -> str:
    """A job variable that names a secret block, as a deployment should."""
    await Secret(value=VALUE).save("a-token", overwrite=True)
    return "{{ prefect.blocks.secret.a-token }}"


@pytest.mark.slurm
async def test_while_a_flow_runs_its_secrets_are_in_its_own_file_and_nowhere_else(
    site: Site, tmp_path: Path, token: str
) -> None:
    marker = tmp_path / "runs"
    deployment = await deploy_flow(site, tmp_path, env={"TOKEN": token})
    run_id = await site.start(deployment, how="sleep", marker=str(marker))
    await await_until(lambda: asyncio.to_thread(marker.exists), 90, "the flow to run")
    (submission,) = site.submissions(run_id)

    # All that the worker, Slurm (its state and spool, with the job's script and environment) and the job have written.
    found = await asyncio.to_thread(holding_secrets, site.folder, site.slurm.folder)
    assert found == [Path(submission.secret_path or "")]
    assert (await asyncio.to_thread(found[0].stat)).st_mode & 0o777 == 0o600
    assert await asyncio.to_thread(command_lines_with_secrets) == []

    await site.cancel(run_id)
    assert (await site.end(run_id, 60)).state_name == "Cancelled"
    await await_until(lambda: asyncio.to_thread(lambda: not found[0].exists()), 30, "the removal of the secrets")


@pytest.mark.slurm
@pytest.mark.parametrize("refused", [{"partition": "nowhere"}, {"directory": "/nowhere"}], ids=["sbatch", "directory"])
async def test_a_submission_that_is_refused_tells_no_secret(
    site: Site, tmp_path: Path, token: str, refused: dict[str, str]
) -> None:
    deployment = await deploy_flow(site, tmp_path, **{"env": {"TOKEN": token}, **refused})
    run_id = await site.start(deployment, how="well")
    run = await site.end(run_id)
    assert run.state_name == "Failed"
    assert "nowhere" in message(run)
    told = [state.message or "" for state in await site.states(run_id)]
    told += await site.logged(run_id, "was not submitted")
    told += [str(page) for page in (await site.artifacts(run_id)).values()]
    told += [str(event) for event in await await_events("the run's events", resource=f"prefect.flow-run.{run_id}")]
    told += [repr(row) for row in site.submissions(run_id)]
    told += [run.model_dump_json()]
    assert [text for text in told if any(secret.decode() in text for secret in SECRETS)] == []
    assert await asyncio.to_thread(holding_secrets, site.folder, site.slurm.folder) == []


def holding_secrets(*folders: Path) -> list[Path]:
    """The files below that hold a secret."""
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and has_secret(path)]


def command_lines_with_secrets() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if has_secret(path)]


def has_secret(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        # It has ended, or is a socket's.
        return False
    return any(secret in content for secret in SECRETS)
