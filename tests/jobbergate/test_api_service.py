"""The real Jobbergate API that the tests start: who may do what there, and what it does, through plain httpx."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from tests.cluster.jobbergate_api import AGENT, PERSON, PYTHON, READER, JobbergateApi, running_api
from tests.cluster.postgres import PostgresServer
from tests.jobbergate.oidc import SECRET

TEMPLATE = "#!/bin/sh\necho {{ data.word }}\n"
SUPPORT = "word={{ data.word }}\n"
WORKFLOW = "class JobbergateApplication:\n    pass\n"
CONFIG = {"template_files": ["job.sh.j2"], "default_template": "job.sh.j2", "supporting_files": ["conf.j2"]}
PATIENCE = 60


@pytest.fixture(scope="module")
def logged_in(
    jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], httpx.Client]]:
    """The API's client as one of the OIDC provider's clients: people log in by device, the agent has a secret."""
    made: dict[str, httpx.Client] = {}

    def client(name: str) -> httpx.Client:
        if name not in made:
            made[name] = connect(jobbergate_api, name, tmp_path_factory.mktemp(name))
        return made[name]

    yield client
    for one in made.values():
        one.close()


@pytest.fixture
def person(logged_in: Callable[[str], httpx.Client]) -> httpx.Client:
    return logged_in(PERSON)


@pytest.fixture
def agent(logged_in: Callable[[str], httpx.Client]) -> httpx.Client:
    return logged_in(AGENT)


def connect(api: JobbergateApi, name: str, folder: Path) -> httpx.Client:
    auth = JobbergateAuthHandler(
        folder,
        api.provider.domain,
        name,
        SECRET if name == AGENT else None,
        login_url_handler=lambda _: None,
        may_login=name != AGENT,
    )
    return httpx.Client(base_url=api.api_url, auth=auth, timeout=PATIENCE, trust_env=False)


def said(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def create_application(client: httpx.Client, identifier: str) -> int:
    made = said(client.post("/job-script-templates", json={"name": "Echo", "identifier": identifier}), 201)
    files = f"/job-script-templates/{made['id']}/upload"
    for kind, name, text in (("ENTRYPOINT", "job.sh.j2", TEMPLATE), ("SUPPORT", "conf.j2", SUPPORT)):
        said(client.put(f"{files}/template/{kind}", files={"upload_file": (name, text)}))
    config = {"runtime_config": json.dumps(CONFIG)}
    said(client.put(f"{files}/workflow", files={"upload_file": ("jobbergate.py", WORKFLOW)}, data=config))
    return int(made["id"])


def create_job_script(client: httpx.Client, application: int) -> int:
    rendering = {
        "template_output_name_mapping": {"job.sh.j2": "job.sh", "conf.j2": "conf"},
        "sbatch_params": ["--comment=why"],
        "param_dict": {"data": {"word": "hello"}},
    }
    body = {"create_request": {"name": "echo"}, "render_request": rendering}
    return int(said(client.post(f"/job-scripts/render-from-template/{application}", json=body), 201)["id"])


def create_submission(client: httpx.Client, job_script: int, **more: Any) -> dict[str, Any]:
    made = client.post("/job-submissions", json={"name": "echo", "job_script_id": job_script, **more})
    found: dict[str, Any] = said(made, 201)
    return found


def test_an_application_is_read_back_as_it_was_created(person: httpx.Client) -> None:
    identifier = create_application(person, "echo")
    found = said(person.get("/job-script-templates/echo"))
    assert (found["id"], found["name"], found["owner_email"]) == (identifier, "Echo", "ada@example.org")
    kinds = {file["filename"]: file["file_type"] for file in found["template_files"]}
    assert kinds == {"job.sh.j2": "ENTRYPOINT", "conf.j2": "SUPPORT"}
    assert [file["runtime_config"] for file in found["workflow_files"]] == [CONFIG]
    files = "/job-script-templates/echo/upload"
    assert person.get(f"{files}/template/job.sh.j2").text == TEMPLATE
    assert person.get(f"{files}/template/conf.j2").text == SUPPORT
    assert person.get(f"{files}/workflow").text == WORKFLOW


def test_the_agent_lists_and_reads_what_a_person_submitted_to_its_cluster(
    person: httpx.Client, agent: httpx.Client
) -> None:
    job_script = create_job_script(person, create_application(person, "to-submit"))
    there = create_submission(person, job_script, client_id=AGENT, execution_directory="/tmp")
    elsewhere = create_submission(person, job_script)
    assert (there["status"], there["client_id"], elsewhere["client_id"]) == ("CREATED", AGENT, PERSON)

    pending = {one["id"]: one for one in said(agent.get("/job-submissions/agent/pending"))["items"]}
    assert elsewhere["id"] not in pending
    found = pending[there["id"]]
    assert (found["owner_email"], found["execution_directory"]) == ("ada@example.org", "/tmp")
    names = {file["filename"]: file["file_type"] for file in found["job_script"]["files"]}
    assert names == {"job.sh": "ENTRYPOINT", "conf": "SUPPORT"}
    script = agent.get(f"/job-scripts/{job_script}/upload/job.sh").text
    assert script.splitlines()[-1] == "echo hello"
    assert "#SBATCH --comment=why" in script


def test_metrics_that_the_agent_sends_are_read_at_every_sample_rate(person: httpx.Client, agent: httpx.Client) -> None:
    job_script = create_job_script(person, create_application(person, "to-measure"))
    submission = create_submission(person, job_script, client_id=AGENT)["id"]
    job = {"id": submission, "slurm_job_id": 7, "slurm_job_state": "RUNNING", "slurm_job_info": "{}"}
    said(agent.post("/job-submissions/agent/submitted", json=job), 202)
    # A Monday, with which the weeks, the longest, begin: all points are of one bucket.
    start = int(time.time()) // 604800 * 604800 + 4 * 86400 - 604800
    points = [[start + second, "n1", 0, 0, 1.0, 2.0, 50.0, 3, 4.0, 5, 100, 6, 200, 7] for second in range(10)]
    sent = agent.put(
        f"/job-submissions/agent/metrics/{submission}",
        content=packed(points),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert sent.status_code == 204, sent.text
    place = {"time": start, "node_host": "n1", "step": None, "task": None}
    means = {"cpu_frequency": 1, "cpu_utilization": 50, "gpu_memory": 3, "gpu_utilization": 4}
    means |= {"memory_rss": 100, "memory_virtual": 200}
    sums = {"cpu_time": 20, "page_faults": 50, "disk_read": 60, "disk_write": 70}
    for rate in (10, 60, 600, 3600, 604800):
        for node in ({}, {"node": "n1"}):
            asked = {"sample_rate": rate, "start_time": start, **node}
            assert said(person.get(f"/job-submissions/{submission}/metrics", params=asked)) == [place | means | sums], (
                asked
            )


def packed(points: list[list[Any]]) -> bytes:
    """In msgpack, by the library that the API itself has."""
    program = "import json, sys, msgpack; sys.stdout.buffer.write(msgpack.packb(json.load(sys.stdin)))"
    return subprocess.run(
        [str(PYTHON), "-I", "-c", program], input=json.dumps(points).encode(), stdout=subprocess.PIPE, check=True
    ).stdout


def test_without_a_token_that_is_valid_nobody_gets_in(jobbergate_api: JobbergateApi) -> None:
    provider = jobbergate_api.provider

    def status(token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(f"{jobbergate_api.api_url}/job-scripts", headers=headers, timeout=PATIENCE).status_code

    content = {"azp": PERSON, **provider.clients[PERSON]}
    valid = provider.token(**content)
    assert status(valid) == 200
    assert status(None) == 401
    assert status(valid[:-8] + valid[:8]) == 401
    assert status(provider.token(-1, **content)) == 401
    assert status(provider.token(**content, aud="somebody")) == 401


@pytest.mark.parametrize(
    ("name", "method", "path"),
    [
        (READER, "GET", "/job-submissions"),
        (READER, "POST", "/job-scripts"),
        (PERSON, "PUT", "/clusters/status?interval=60"),
        (AGENT, "GET", "/job-script-templates"),
    ],
)
def test_with_too_few_permissions_nothing_is_done(
    logged_in: Callable[[str], httpx.Client], name: str, method: str, path: str
) -> None:
    client = logged_in(name)
    assert client.get("/job-scripts").status_code == 200
    assert client.request(method, path, json={"name": "a"}).status_code == 403


def test_it_pauses_goes_on_where_it_was_stopped_and_leaves_nothing_behind(
    postgres: PostgresServer, jobbergate_api: JobbergateApi, tmp_path: Path
) -> None:
    with running_api(postgres) as api:
        with connect(api, PERSON, tmp_path) as client:
            create_application(client, "kept")
            api.pause()
            with pytest.raises(httpx.ReadTimeout):
                client.get("/job-script-templates/kept", timeout=1)
            api.resume()
            api.stop()
            with pytest.raises(httpx.ConnectError):
                client.get("/job-script-templates/kept")
            api.start()
            assert client.get("/job-script-templates/kept/upload/template/job.sh.j2").text == TEMPLATE
        others = jobbergate_api.provider.access_token(PERSON)
        found = httpx.get(
            f"{jobbergate_api.api_url}/job-script-templates/kept",
            headers={"Authorization": f"Bearer {others}"},
            timeout=PATIENCE,
        )
        assert found.status_code == 404
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{api.api_url}/health")
    assert not api.folder.exists()
    assert not api.s3.folder.exists()
