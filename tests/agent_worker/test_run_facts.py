"""What is known of a run on a real server, whatever any client writes there."""

from __future__ import annotations

from base64 import b64encode
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from agent_worker.identity.bindings import Bindings, make_binding
from agent_worker.identity.consent import Consent
from agent_worker.identity.facts import Creator, RequestRefused, RunFacts
from agent_worker.identity.policy import Allowed, Denied, IdentityPolicy, decide
from agent_worker.run_facts import ReadRun, read_run_facts
from jobbergate_flows.applications import load_application
from jobbergate_flows.deployments import DeployedApplication, adeploy_application
from tests.agent_worker.identity.runs import NOW
from tests.cli.command_line import application
from tests.cluster.prefect_server import PrefectServer

POOL = "facts-test"
OWNER = IdentityPolicy("owner")


@pytest.fixture(scope="module")
async def deployed(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> DeployedApplication:
    folder = tmp_path_factory.mktemp("facts")
    made = load_application(application(folder / "greeting", "echo {{ data.name }}", 'Text("name", "Which name?")'))
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    return await adeploy_application(made, work_pool=POOL)


@pytest.fixture
def bound(deployed: DeployedApplication) -> Bindings:
    """The deployment is alice's; who came by the automation would be carol."""
    digest = deployed.application.rpartition("@")[2]
    return Bindings(
        (
            make_binding({"deployment": deployed.name, "application": digest, "account": "alice"}),
            make_binding({"created_by": str(UUID(int=7)), "account": "carol"}),
        )
    )


async def read(client: PrefectClient, run_id: UUID, **options: Any) -> ReadRun:
    return await read_run_facts(client, await client.read_flow_run(run_id), work_pool="slurm", **options)


async def started(deployed: DeployedApplication, headers: dict[str, str] | None = None, **body: Any) -> ReadRun:
    """A run made as any client can make it: the form is not enforced if it says so."""
    async with get_client() as client:
        answer = await client._client.post(
            f"/deployments/{deployed.id}/create_flow_run",
            json={"enforce_parameter_schema": False, **body},
            headers=headers or {},
        )
        return await read(client, UUID(answer.json()["id"]))


def decided(facts: RunFacts, bindings: Bindings) -> Allowed | Denied:
    decision = decide(facts, OWNER, bindings, None, Consent(), NOW)
    assert isinstance(decision, Allowed | Denied)
    return decision


async def test_an_applications_run_is_what_will_be_rendered(deployed: DeployedApplication) -> None:
    retries = {"attempts": 2}
    found = await started(
        deployed, parameters={"answers": {"name": "x"}, "resources": {"nodes": "2"}, "retries": retries}
    )

    assert found.facts == RunFacts(
        flow_run_id=found.facts.flow_run_id,
        deployment_id=str(deployed.id),
        deployment_name=deployed.name,
        application=deployed.application.rpartition("@")[2],
        answers={"name": "x"},
        resources={"nodes": "2"},
        directory="~",
        job_name="",
        work_pool="slurm",
        work_queue="default",
        retries=retries,
    )
    assert found.parameters == {
        "application": deployed.application,
        "answers": {"name": "x"},
        "resources": {"nodes": "2"},
        "directory": "~",
        "job_name": "",
        "retries": retries,
    }


@pytest.mark.parametrize(
    "claims",
    [
        {"parameters": {"user": "bob", "account": "bob", "created_by": {"id": str(UUID(int=7)), "type": "USER"}}},
        {"tags": ["user:bob", "account=bob", "created_by:bob"]},
        {"job_variables": {"user": "bob", "account": "bob"}},
        {"name": "bob"},
        {"context": {"created_by": "bob"}},
    ],
    ids=str,
)
async def test_nothing_that_a_run_says_of_itself_makes_it_somebody_elses(
    deployed: DeployedApplication, bound: Bindings, claims: dict[str, Any]
) -> None:
    honest = await started(deployed, parameters={"answers": {"name": "x"}})
    claims = {**claims, "parameters": {"answers": {"name": "x"}, **claims.get("parameters", {})}}
    claiming = await started(deployed, **claims)

    assert claiming.facts.created_by is None
    assert claiming.parameters == honest.parameters
    assert decided(claiming.facts, bound) == decided(honest.facts, bound)
    assert isinstance(decided(claiming.facts, bound), Allowed)


async def test_infrastructure_pid_makes_it_nobody_elses(deployed: DeployedApplication, bound: Bindings) -> None:
    made = await started(deployed, parameters={"answers": {"name": "x"}})
    async with get_client() as client:
        await client.update_flow_run(UUID(made.facts.flow_run_id), infrastructure_pid="cluster:bob")
        assert (await read(client, UUID(made.facts.flow_run_id))).facts == made.facts


async def test_the_servers_word_on_who_made_it_can_be_forged_and_does_not_count(
    deployed: DeployedApplication, bound: Bindings
) -> None:
    forged = {
        "Prefect-Automation-Id": str(UUID(int=7)),
        "Prefect-Automation-Name": b64encode(b"carol").decode(),
    }
    found = await started(deployed, headers=forged, parameters={"answers": {"name": "x"}})

    assert found.facts.created_by == Creator(str(UUID(int=7)), "AUTOMATION", "carol")
    only_carol = Bindings(bound.entries[1:])
    assert isinstance(decided(found.facts, only_carol), Denied)


async def test_another_application_in_the_parameters_is_what_is_decided_about(
    deployed: DeployedApplication, bound: Bindings
) -> None:
    other = f"greeting@sha256:{'b' * 64}"
    found = await started(deployed, parameters={"application": other})

    assert (found.pin, found.facts.application) == (other, f"sha256:{'b' * 64}")
    assert found.parameters["application"] == other
    assert isinstance(decided(found.facts, bound), Denied)


async def test_a_run_without_a_pin_gets_the_one_of_the_form_for_good(deployed: DeployedApplication) -> None:
    # The parameters to run with name it, so that a form that is changed meanwhile changes nothing.
    found = await started(deployed, parameters={"application": ""})
    assert found.parameters["application"] == deployed.application
    assert found.facts.application == deployed.application.rpartition("@")[2]


@pytest.mark.parametrize(
    "form",
    [
        {"properties": []},
        {"properties": {"application": 3}},
        {"properties": {"application": {"const": ["x"]}}},
        {"properties": None},
    ],
    ids=str,
)
async def test_a_form_that_is_none_pins_nothing(
    deployed: DeployedApplication, bound: Bindings, form: dict[str, Any]
) -> None:
    async with get_client() as client:
        of = await client.read_deployment(deployed.id)
        flow_id = await client.create_flow_from_name("formless")
        deployment = await client.create_deployment(
            flow_id, f"now-{uuid4()}", entrypoint=of.entrypoint, parameter_openapi_schema=form
        )
        answer = await client._client.post(
            f"/deployments/{deployment}/create_flow_run", json={"enforce_parameter_schema": False}
        )
        found = await read(client, UUID(answer.json()["id"]))
    assert (found.facts.kind, found.facts.application, found.pin) == ("application", None, None)
    assert isinstance(decided(found.facts, bound), Denied)


@pytest.mark.parametrize(
    "pin", ["nonsense", "a@sha256:0", f"sha256:{'a' * 64}", f"a@sha256:{'a' * 64}\n", f"a@b@sha256:{'A' * 64}"]
)
async def test_what_is_no_pin_is_no_application(deployed: DeployedApplication, bound: Bindings, pin: str) -> None:
    found = await started(deployed, parameters={"application": pin})
    assert found.facts.application is None
    assert isinstance(decided(found.facts, bound), Denied)


@pytest.mark.parametrize(
    "parameters",
    [
        {"application": {"const": "x"}},
        {"answers": ["x"]},
        {"answers": "x"},
        {"resources": 7},
        {"directory": ["/"]},
        {"job_name": {"a": 1}},
    ],
    ids=str,
)
async def test_a_parameter_of_another_type_is_refused(
    deployed: DeployedApplication, parameters: dict[str, Any]
) -> None:
    with pytest.raises(RequestRefused, match="parameter"):
        await started(deployed, parameters=parameters)


async def test_a_run_that_claims_another_flow_bears_its_deployments_name(deployed: DeployedApplication) -> None:
    async with get_client() as client:
        other = await client.create_flow_from_name("alices-flow")
        answer = await client._client.post(
            "/flow_runs/",
            json={
                "flow_id": str(other),
                "deployment_id": str(deployed.id),
                "parameters": {"answers": {"name": "x"}},
                "state": {"type": "SCHEDULED"},
            },
        )
        assert (await read(client, UUID(answer.json()["id"]))).facts.deployment_name == deployed.name


@pytest.mark.parametrize(
    "pull_steps", [None, [{"prefect.deployments.steps.set_working_directory": {"directory": "/"}}]]
)
async def test_what_is_not_ours_alone_is_an_ordinary_flow(
    deployed: DeployedApplication, pull_steps: list[dict[str, Any]] | None
) -> None:
    entrypoint = "jobbergate_flows.flows.run_application" if pull_steps else "flow.py:flow"
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("ordinary")
        deployment = await client.create_deployment(
            flow_id,
            f"now-{uuid4()}",
            entrypoint=entrypoint,
            pull_steps=pull_steps,
            parameters={"application": deployed.application},
        )
        run = await client.create_flow_run_from_deployment(deployment)
        found = await read(client, run.id, resources={"nodes": "1"}, directory="/scratch")
    assert (found.facts.kind, found.facts.application, found.pin) == ("flow", None, None)
    assert (found.facts.resources, found.facts.directory) == ({"nodes": "1"}, "/scratch")
