"""What a flow on a node needs to know, and nobody else: the API key, and what a secret block holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prefect.blocks.system import Secret

from tests.cluster.events import await_events
from tests.cluster.secrets import SECRETS, VALUE, command_lines_with_secrets, holding_secrets
from tests.cluster.site import Site, message
from tests.cluster.waiting import await_until
from tests.end_to_end.flows import deploy_flow


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
    await await_until(lambda: asyncio.to_thread(marker.exists), 150, "the flow to run")
    (submission,) = site.submissions(run_id)

    # All that the worker, Slurm (its state and spool, with the job's script and environment) and the job have written.
    found = await asyncio.to_thread(holding_secrets, site.folder, site.slurm.folder)
    assert found == [Path(submission.secret_path or "")]
    assert (await asyncio.to_thread(found[0].stat)).st_mode & 0o777 == 0o600
    assert await asyncio.to_thread(command_lines_with_secrets) == []

    await site.cancel(run_id)
    assert (await site.settled(run_id, 120)).state_name == "Cancelled"
    await await_until(lambda: asyncio.to_thread(lambda: not found[0].exists()), 150, "the removal of the secrets")


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("asked", "how", "said", "logged"),
    [
        ({"partition": "nowhere"}, "well", "nowhere", "was not submitted"),
        ({"directory": "/nowhere"}, "well", "nowhere", "was not submitted"),
        ({}, "well", "", "printed by the flow"),
        ({}, "fail", "on purpose", "printed by the flow"),
        ({}, "die", "signal 9", "The end of"),
    ],
    ids=["refused by sbatch", "no such directory", "goes well", "fails", "is killed"],
)
async def test_whatever_becomes_of_a_run_it_tells_no_secret(
    site: Site, tmp_path: Path, token: str, asked: dict[str, str], how: str, said: str, logged: str
) -> None:
    deployment = await deploy_flow(site, tmp_path, **{"env": {"TOKEN": token}, **asked})
    run_id = await site.start(deployment, how=how)
    run = await site.end(run_id, 120)
    assert said in message(run)
    told = [state.message or "" for state in await site.states(run_id)]
    told += await site.logged(run_id, logged)
    told += [str(page) for page in (await site.artifacts(run_id)).values()]
    told += [str(event) for event in await await_events("the run's events", resource=f"prefect.flow-run.{run_id}")]
    told += [repr(row) for row in site.submissions(run_id)]
    told += [run.model_dump_json()]
    assert [text for text in told if any(secret.decode() in text for secret in SECRETS)] == []

    async def all_is_gone() -> bool:
        return await asyncio.to_thread(holding_secrets, site.folder, site.slurm.folder) == []

    await await_until(all_is_gone, 150, "no file with a secret")
