"""`consent`: what a user allows, and what they see before."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from agent_worker.identity.bindings import Bindings
from agent_worker.identity.consent import Consent, read
from agent_worker.identity.policy import Allowed, IdentityPolicy, NeedsConsent, decide
from agent_worker.run_facts import ReadRun, read_run_facts
from jobbergate_flows.applications import load_application
from jobbergate_flows.deployments import DeployedApplication, adeploy_application
from tests.agent_worker.identity.runs import NOW
from tests.cli.command_line import COMMAND, Ended, application, run
from tests.cluster.prefect_server import PrefectServer

DIGEST = f"sha256:{'a' * 64}"
NAME = "parameter-study/nightly"
POOL = "consent-test"
POLICY = IdentityPolicy("single-user", account="alice", consent=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "authorized_deployments"


class TestADeployment:
    def test_is_allowed_listed_and_taken_back(self, file: Path) -> None:
        added = run(
            *("consent", "add", NAME, "--application", f"study@{DIGEST}", "--answers-any", "--max-nodes", "4"),
            *("--expires", "2999-12-31", "--partition", "a|b", "--file", file),
        )
        line = f"{NAME} {DIGEST} expires=2999-12-31,max-nodes=4,partition=a|b,answers=any"
        assert (added.code, added.out) == (0, f"{line}\n")
        assert file.read_text() == f"{line}\n"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

        listed = json.loads(run("consent", "list", "--json", "--file", file).out)
        assert listed["problems"] == []
        assert listed["lines"][0]["options"]["max-nodes"] == "4"
        assert NAME in run("consent", "list", "--file", file).out

        assert run("consent", "remove", NAME, "--file", file).code == 0
        assert read(file) == Consent()

    def test_lies_in_the_users_home_where_the_worker_reads_it(self, tmp_path: Path) -> None:
        done = run("consent", "add", NAME, "--flows-any", env={"HOME": str(tmp_path)})
        assert done.code == 0
        assert (tmp_path / ".config/jobbergate-flows/authorized_deployments").read_text() == f"{NAME} flows=any\n"

    def test_one_line_of_several_is_taken_back(self, file: Path) -> None:
        for deployment in ("a/b", "c/d", "a/b"):
            run("consent", "add", deployment, "--flows-any", "--file", file)
        assert run("consent", "remove", "--line", "3", "--file", file).out == "line 3: a/b\n"
        assert [line.deployment for line in read(file).lines] == ["a/b", "c/d"]
        assert run("consent", "remove", "--line", "3", "--file", file).code == 3

    def test_a_broken_line_is_told(self, file: Path) -> None:
        run("consent", "add", NAME, "--flows-any", "--file", file)
        file.write_text(file.read_text() + "what is this\n")
        ended = run("consent", "list", "--file", file)
        assert NAME in ended.out
        assert "NOT OK: line 2: 'what' is no deployment" in ended.err

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            ([], 2),
            ([NAME], 2),
            ([NAME, "--application", DIGEST], 2),
            ([NAME, "--answers-any"], 3),
            ([NAME, "--application", "sha256:0", "--answers-any"], 3),
            (["nightly", "--application", DIGEST, "--answers-any"], 3),
            ([NAME, "--flows-any", "--expires", "soon"], 3),
            ([NAME, "--flows-any", "--expires", "2026-01-01"], 3),
            ([NAME, "--flows-any", "--max-memory", "lots"], 3),
            ([NAME, "--flows-any", "--partition", "a b"], 3),
            ([NAME, "--run", "x"], 2),
            (["--run", "x", "--answers-any", "--yes"], 2),
            (["--run", "x"], 2),
            (["--run", "x", "--yes"], 2),
        ],
        ids=str,
    )
    def test_nothing_is_allowed_by_nonsense(self, file: Path, arguments: list[str], code: int) -> None:
        ended = run("consent", "add", *arguments, "--file", file)
        assert ended.code == code, ended.err
        assert ended.err.startswith("Error: ")
        assert "line 1" not in ended.err
        assert not file.exists()


@dataclass(frozen=True)
class World:
    """A deployment on a real server, whose application notes that its code was run."""

    deployed: DeployedApplication
    environment: dict[str, str]
    trace: Path

    def start(self, **parameters: Any) -> UUID:
        async def create() -> UUID:
            async with get_client() as client:
                # As any client can do it: the form is not enforced.
                made = await client._client.post(
                    f"/deployments/{self.deployed.id}/create_flow_run",
                    json={
                        "parameters": {"answers": {"name": "first"}, "directory": "~/runs", **parameters},
                        "enforce_parameter_schema": False,
                    },
                )
                return UUID(made.json()["id"])

        return asyncio.run(create())

    def facts(self, run_id: UUID) -> ReadRun:
        async def read_it() -> ReadRun:
            async with get_client() as client:
                return await read_run_facts(client, await client.read_flow_run(run_id), work_pool=POOL)

        return asyncio.run(read_it())

    def decision(self, run_id: UUID, file: Path) -> Allowed | NeedsConsent:
        decided = decide(self.facts(run_id).facts, POLICY, Bindings(), None, read(file), NOW)
        assert isinstance(decided, Allowed | NeedsConsent)
        return decided

    def add(self, run_id: UUID, file: Path, *arguments: str) -> Ended:
        return run("consent", "add", "--run", str(run_id), *arguments, "--file", file, env=self.environment)


@pytest.fixture(scope="module")
def world(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    trace = folder / "trace"
    made = application(folder / "greeting", "echo {{ data.name }}", 'Text("name", "Which name?")')
    workflow = made / "jobbergate.py"
    workflow.write_text(workflow.read_text() + f"open({str(trace)!r}, 'a').close()\n")

    async def deploy() -> DeployedApplication:
        from prefect.client.schemas.actions import WorkPoolCreate

        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        return await adeploy_application(load_application(made), work_pool=POOL)

    deployed = asyncio.run(deploy())
    return World(deployed, {"PREFECT_API_URL": prefect_server.api_url}, trace)


class TestARun:
    def test_exactly_what_it_asks_for_is_allowed(self, world: World, file: Path) -> None:
        first, second = world.start(), world.start(answers={"name": "$(id)"})
        assert isinstance(world.decision(first, file), NeedsConsent)

        ended = world.add(first, file, "--yes", "--max-time", "60", "--expires", "2999-01-01")
        assert ended.code == 0, ended.err
        assert str(world.deployed.id) in ended.out

        waits = world.decision(first, file)
        assert isinstance(waits, NeedsConsent)
        assert "state --time" in waits.why
        assert world.add(first, file, "--yes").code == 0
        assert isinstance(world.decision(first, file), Allowed)
        assert isinstance(world.decision(second, file), NeedsConsent)

    def test_what_would_run_is_shown_and_none_of_its_code_is_run(self, world: World, file: Path) -> None:
        world.trace.unlink(missing_ok=True)
        run_id = world.start(answers={"name": "x\u202e\x1b[2J"}, resources={"time_limit": "5"}, job_name="\x1b]0;hi")

        ended = world.add(run_id, file, "--yes", "--source")

        assert not world.trace.exists()
        digest = world.deployed.application.rpartition("@")[2]
        for shown in (str(run_id), digest, world.deployed.name, "time_limit", "~/runs", "jobbergate.py", "mainflow"):
            assert shown in ended.err
        assert "nobody knows" in ended.err
        assert r"x\u202e\u001b[2J" in ended.err
        assert all(letter.isascii() and (letter.isprintable() or letter in "\n\t") for letter in ended.err)

    def test_the_script_is_shown_where_it_is_asked_for(self, world: World, file: Path) -> None:
        world.trace.unlink(missing_ok=True)
        ended = world.add(world.start(), file, "--yes", "--render")
        assert "echo first" in ended.err
        assert world.trace.exists()

    def test_an_answer_that_does_not_render_is_told(self, world: World, file: Path) -> None:
        ended = world.add(world.start(answers={}), file, "--yes", "--render")
        assert "cannot be rendered" in ended.err

    @pytest.mark.parametrize(
        ("typed", "allowed", "rendered"),
        [("n\ny\n", True, False), ("y\ny\n", True, True), ("n\nn\n", False, False), ("n\n\n", False, False)],
    )
    def test_on_a_terminal_its_user_is_asked(
        self, world: World, file: Path, typed: str, allowed: bool, rendered: bool
    ) -> None:
        world.trace.unlink(missing_ok=True)
        code, shown = on_a_terminal(["consent", "add", "--run", str(world.start()), "--file", str(file)], world, typed)
        assert "runs the jobbergate.py above as you" in shown
        assert "Allow exactly this" in shown
        assert (code, file.exists(), world.trace.exists()) == (0 if allowed else 1, allowed, rendered)

    def test_an_ordinary_flow_cannot_be_allowed_by_its_run(self, world: World, file: Path) -> None:
        async def create() -> UUID:
            async with get_client() as client:
                flow_id = await client.create_flow_from_name("ordinary")
                deployment = await client.create_deployment(flow_id, "now", entrypoint="flow.py:flow")
                return (await client.create_flow_run_from_deployment(deployment)).id

        ended = world.add(asyncio.run(create()), file, "--yes")
        assert ended.code == 3
        assert "--flows-any" in ended.err
        assert not file.exists()

    def test_a_run_that_is_not_there_is_told(self, world: World, file: Path) -> None:
        ended = world.add(UUID(int=1), file, "--yes")
        assert ended.code == 3
        assert not file.exists()

    def test_a_server_that_is_not_there_is_told(self, file: Path) -> None:
        nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
        ended = run("consent", "add", "--run", str(UUID(int=1)), "--yes", "--file", file, env=nowhere)
        assert ended.code == 4


def on_a_terminal(arguments: list[str], world: World, typed: str) -> tuple[int, str]:
    """Run the command on a terminal; type a line each time that it asks. Returns its exit code and all it showed."""
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, *arguments],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, **world.environment, "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(inner)
    answers, shown, asked = typed.splitlines(), "", 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([outer], [], [], 1)[0]:
            try:
                data = os.read(outer, 65_536)
            except OSError:
                break
            if not data:
                break
            shown += data.decode(errors="replace")
        if asked < len(answers) and shown.count("[y/N]:") > asked:
            os.write(outer, f"{answers[asked]}\n".encode())
            asked += 1
    process.wait(10)
    os.close(outer)
    return process.returncode, shown
