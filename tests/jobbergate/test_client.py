"""The client of the Jobbergate API, against the real one, and against one that fails on request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.auth import (
    AuthenticationError,
    JobbergateAuthHandler,
    ProviderUnreachable,
    Token,
    TokenType,
)
from jobbergate_flows.jobbergate.calls import Selection
from jobbergate_flows.jobbergate.client import (
    JobbergateApiError,
    JobbergateClient,
    JobbergateRequestError,
    JobbergateResponseError,
    ResponseModelError,
)
from jobbergate_flows.jobbergate.models import (
    FileType,
    JobData,
    JobScript,
    JobScriptTemplateDetails,
    NewSubmission,
    Rendering,
    SubmissionStatus,
)
from tests.cluster.http_server import Handler, serving
from tests.cluster.jobbergate_api import AGENT, PERSON, READER, JobbergateApi
from tests.jobbergate.oidc import SECRET

TEMPLATE = b"#!/bin/sh\necho {{ data.word }}\n"
PATIENCE = 60.0


def connect(api: JobbergateApi, name: str, folder: Path, **options: Any) -> JobbergateClient:
    auth = JobbergateAuthHandler(
        folder / name,
        api.provider.domain,
        name,
        SECRET if name == AGENT else None,
        login_url_handler=lambda _: None,
        may_login=name != AGENT,
    )
    return JobbergateClient(api.url, auth, **{"timeout": PATIENCE, "backoff": 0.01, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def person(jobbergate_api: JobbergateApi, folder: Path) -> Iterator[JobbergateClient]:
    with connect(jobbergate_api, PERSON, folder) as client:
        yield client


@pytest.fixture(scope="module")
def agent(jobbergate_api: JobbergateApi, folder: Path) -> Iterator[JobbergateClient]:
    with connect(jobbergate_api, AGENT, folder) as client:
        yield client


def new_application(client: JobbergateClient, identifier: str) -> JobScriptTemplateDetails:
    made = client.send(calls.create_application("Echo", identifier=identifier, template_vars={"word": "hello"}))
    client.send(calls.upload_template(made.id, FileType.ENTRYPOINT, "job.sh.j2", TEMPLATE))
    return made


def new_job_script(client: JobbergateClient, name: str = "echo") -> int:
    made = client.send(calls.create_job_script(name))
    client.send(calls.upload_job_script_file(made.id, FileType.ENTRYPOINT, "job.sh", b"#!/bin/sh\ntrue\n"))
    return made.id


def new_submission(client: JobbergateClient, **more: Any) -> int:
    submission = NewSubmission(name="echo", job_script_id=new_job_script(client), client_id=AGENT, **more)
    return client.send(calls.create_job_submission(submission)).id


class TestWhatTheApiHas:
    def test_an_application_is_made_read_changed_cloned_and_deleted(self, person: JobbergateClient) -> None:
        made = new_application(person, "client-application")
        config = {"default_template": "job.sh.j2", "own": [1, 2]}
        person.send(calls.upload_workflow(made.id, b"class JobbergateApplication:\n    pass\n", config))
        person.send(calls.upload_template(made.id, FileType.SUPPORT, "old name.j2", b"{{ data.word }}\n"))
        person.send(
            calls.upload_template(made.id, FileType.SUPPORT, "new.j2", b"{{ data.word }}\n", previous="old name.j2")
        )

        found = person.send(calls.get_application("client-application"))
        assert (found.id, found.name, found.owner_email) == (made.id, "Echo", "ada@example.org")
        assert found.template_vars == {"word": "hello"}
        assert {file.filename: file.file_type for file in found.template_files or ()} == {
            "job.sh.j2": FileType.ENTRYPOINT,
            "new.j2": FileType.SUPPORT,
        }
        assert [file.runtime_config for file in found.workflow_files or ()] == [config]
        assert person.send(calls.download_template(made.id, "job.sh.j2")) == TEMPLATE
        assert person.send(calls.download_workflow(made.id)).startswith(b"class JobbergateApplication")

        assert person.send(calls.update_application(made.id, description="why")).description == "why"
        copy = person.send(calls.clone_application(made.id, name="Copy"))
        assert (copy.name, copy.identifier, copy.cloned_from_id) == ("Copy", None, made.id)
        person.send(calls.delete_template(made.id, "new.j2"))
        person.send(calls.delete_workflow(made.id))
        person.send(calls.delete_application(made.id))
        with pytest.raises(JobbergateResponseError) as refused:
            person.send(calls.get_application(made.id))
        assert (refused.value.status, refused.value.passing) == (404, False)

    def test_a_job_script_is_rendered_by_the_api(self, person: JobbergateClient) -> None:
        application = new_application(person, "client-rendering")
        rendering = Rendering(
            template_output_name_mapping={"job.sh.j2": "job.sh"},
            param_dict={"data": {"word": "hello"}},
            sbatch_params=("--comment=why",),
        )
        made = person.send(calls.render_job_script("client-rendering", rendering, name="rendered"))
        text = person.send(calls.download_job_script_file(made.id, "job.sh")).decode()
        assert "#SBATCH --comment=why" in text
        assert text.endswith("echo hello")
        of_it = list(person.items(calls.list_job_scripts(of_application=application.id)))
        assert [(script.id, script.template and script.template.identifier) for script in of_it] == [
            (made.id, "client-rendering")
        ]

    def test_a_job_script_is_made_changed_cloned_and_deleted(self, person: JobbergateClient) -> None:
        made = new_job_script(person, "own")
        person.send(calls.upload_job_script_file(made, FileType.SUPPORT, "data", b"1\n"))
        copy = person.send(calls.clone_job_script(made, name="copy"))
        assert {file.filename for file in copy.files or ()} == {"job.sh", "data"}
        person.send(calls.delete_job_script_file(made, "data"))
        person.send(calls.update_job_script(made, is_archived=True))
        found = person.send(calls.get_job_script(made))
        assert found.is_archived
        assert [file.filename for file in found.files or ()] == ["job.sh"]
        person.send(calls.delete_job_script(copy.id))
        with pytest.raises(JobbergateResponseError, match="404"):
            person.send(calls.get_job_script(copy.id))

    def test_a_submission_goes_from_created_to_done(self, person: JobbergateClient, agent: JobbergateClient) -> None:
        made = new_submission(person, execution_directory="/tmp", sbatch_arguments=("--comment=why",))
        pending = {one.id: one for one in agent.items(calls.list_pending())}[made]
        assert (pending.owner_email, pending.execution_directory) == ("ada@example.org", "/tmp")
        assert pending.sbatch_arguments == ("--comment=why",)
        assert [file.filename for file in pending.job_script.files or ()] == ["job.sh"]

        told = JobData(slurm_job_id=7, slurm_job_state="PENDING", slurm_job_info="{}")
        agent.send(calls.tell_submitted(made, told))
        active = {one.id: one for one in agent.items(calls.list_active())}[made]
        assert (active.status, active.slurm_job_id) == (SubmissionStatus.SUBMITTED, 7)
        agent.send(calls.tell_job(made, told.model_copy(update={"slurm_job_state": "COMPLETED"})))
        found = person.send(calls.get_job_submission(made))
        assert (found.status, found.slurm_job_state) == (SubmissionStatus.DONE, "COMPLETED")
        assert [entry.slurm_job_state for entry in person.items(calls.list_progress(made))][-1] == "COMPLETED"
        assert made in [one.id for one in person.items(calls.list_job_submissions(status=SubmissionStatus.DONE))]
        assert made in [one.id for one in person.items(calls.list_job_submissions(slurm_job_ids=[7, 8]))]
        again = person.send(calls.clone_job_submission(made))
        assert again.status is SubmissionStatus.CREATED
        assert person.send(calls.cancel_job_submission(again.id)).status is SubmissionStatus.CANCELLED
        person.send(calls.update_job_submission(again.id, name="renamed"))
        person.send(calls.delete_job_submission(again.id))

    def test_what_is_rejected_says_why(self, person: JobbergateClient, agent: JobbergateClient) -> None:
        made = new_submission(person)
        agent.send(calls.tell_rejected(made, "no such\0directory"))
        found = person.send(calls.get_job_submission(made))
        assert (found.status, found.report_message) == (SubmissionStatus.REJECTED, "no such�directory")

    def test_a_cluster_reports(self, person: JobbergateClient, agent: JobbergateClient) -> None:
        agent.send(calls.report_cluster(60))
        assert person.send(calls.get_cluster(AGENT)).is_healthy
        assert AGENT in [cluster.client_id for cluster in person.items(calls.list_clusters())]
        with pytest.raises(JobbergateResponseError, match="404"):
            person.send(calls.get_cluster("nobody"))

    def test_metrics_begin_empty(self, person: JobbergateClient, agent: JobbergateClient) -> None:
        made = new_submission(person)
        assert agent.send(calls.get_metrics_mark(made)).max_times == ()
        assert person.send(calls.get_metrics(made, start_time=0)) == ()
        with pytest.raises(JobbergateResponseError, match="404"):
            person.send(calls.get_metrics_times(made))

    def test_what_newer_apis_have_no_more_is_refused(self, person: JobbergateClient) -> None:
        person.send(calls.get_health())
        for what in ("templates", "job-scripts", "unused-entries"):
            with pytest.raises(JobbergateResponseError) as refused:
                person.send(calls.collect_garbage(what))
            assert refused.value.status in (404, 422)

    async def test_all_of_it_goes_with_an_event_loop_too(self, jobbergate_api: JobbergateApi, folder: Path) -> None:
        async with connect(jobbergate_api, PERSON, folder) as client:
            made = await client.asend(calls.create_job_script("in-a-loop"))
            several = await asyncio.gather(*(client.asend(calls.get_job_script(made.id)) for _ in range(5)))
            assert {script.name for script in several} == {"in-a-loop"}
            found = [script.id async for script in client.aitems(calls.list_job_scripts(Selection(search="in-a-loop")))]
            assert found == [made.id]


class TestLists:
    def test_pages_are_read_when_they_are_needed_and_to_the_end(
        self, jobbergate_api: JobbergateApi, folder: Path, person: JobbergateClient
    ) -> None:
        names = [f"paged-{number}" for number in range(5)]
        for name in names:
            person.send(calls.create_job_script(name))
        listing = calls.list_job_scripts(Selection(search="paged-", size=2))
        counting = _Counting(jobbergate_api, folder)
        read = counting.items(listing)
        assert next(read).name == "paged-0"
        assert counting.sent == 1
        assert [script.name for script in read] == names[1:]
        assert counting.sent == 3

    def test_nothing_is_lost_or_doubled_while_the_list_changes(self, person: JobbergateClient) -> None:
        made = [person.send(calls.create_job_script(f"shifting-{number}")).id for number in range(6)]
        read = person.items(calls.list_job_scripts(Selection(search="shifting-", size=2)))
        found = [next(read).id, next(read).id]
        # What comes behind moves up by two, into the page that has been read.
        for one in made[:2]:
            person.send(calls.delete_job_script(one))
        late = person.send(calls.create_job_script("shifting-late")).id
        found += [script.id for script in read]
        assert sorted(found) == [*made, late]

    def test_nothing_is_lost_where_more_than_a_page_goes_at_once(self, person: JobbergateClient) -> None:
        made = [person.send(calls.create_job_script(f"shrinking-{number}")).id for number in range(8)]
        read = person.items(calls.list_job_scripts(Selection(search="shrinking-", size=2)))
        found = [next(read).id for _ in range(6)]
        for one in made[:4]:
            person.send(calls.delete_job_script(one))
        found += [script.id for script in read]
        assert found == made


class _Counting(JobbergateClient):
    def __init__(self, api: JobbergateApi, folder: Path) -> None:
        with connect(api, PERSON, folder) as other:
            super().__init__(other.base_url, other._auth, timeout=PATIENCE)
        self.sent = 0

    def send(self, call: calls.Call[Any]) -> Any:
        self.sent += 1
        return super().send(call)


class TestErrors:
    def test_they_carry_the_apis_own_words(self, person: JobbergateClient) -> None:
        with pytest.raises(JobbergateResponseError) as refused:
            person.send(calls.get_job_script(10**6))
        assert refused.value.status == 404
        assert "1000000" in refused.value.detail
        place = f"GET {person.base_url}/jobbergate/job-scripts/1000000"
        assert str(refused.value).startswith(f"{place}: the Jobbergate API")

    @pytest.mark.parametrize("identifier", [".", "..", "a/b", "a?b#c", "ä b"])
    def test_an_odd_identifier_asks_for_nothing_else(self, person: JobbergateClient, identifier: str) -> None:
        with pytest.raises(JobbergateResponseError, match="404"):
            person.send(calls.get_application(identifier))

    def test_words_are_shown_on_terminals_as_what_they_are(self) -> None:
        with failing_api((400, json.dumps({"detail": "a\x1b[31mb\x9bc\n d"}))) as api, failing_client(api) as client:
            with pytest.raises(JobbergateResponseError) as refused:
                client.send(calls.get_job_script(1))
            assert refused.value.detail == "a�[31mb�c d"

    def test_a_field_that_is_wrong_is_named(self, person: JobbergateClient) -> None:
        with pytest.raises(JobbergateResponseError, match=r"name: String should have at most 255") as refused:
            person.send(calls.create_job_script("x" * 256))
        assert (refused.value.status, refused.value.passing) == (422, False)

    def test_who_may_not_is_told(self, jobbergate_api: JobbergateApi, folder: Path) -> None:
        with connect(jobbergate_api, READER, folder) as client:
            with pytest.raises(JobbergateResponseError) as refused:
                client.send(calls.create_job_script("not mine"))
            assert refused.value.status == 403
            assert "permission" in (refused.value.hint or "")

    def test_an_identifier_that_is_taken_is_a_conflict(self, person: JobbergateClient) -> None:
        new_application(person, "taken")
        with pytest.raises(JobbergateResponseError, match="already exists") as refused:
            person.send(calls.create_application("Other", identifier="taken"))
        assert refused.value.status == 409

    def test_without_a_token_nothing_is_asked(self, jobbergate_api: JobbergateApi, tmp_path: Path) -> None:
        auth = JobbergateAuthHandler(tmp_path, jobbergate_api.provider.domain, PERSON, may_login=False)
        with JobbergateClient(jobbergate_api.url, auth) as client, pytest.raises(AuthenticationError):
            client.send(calls.get_job_script(1))

    @pytest.mark.parametrize("url", ["jobbergate.example.org", "ftp://a", "https://", "https://a?b=c"])
    def test_a_base_url_that_is_none_is_refused(self, url: str) -> None:
        with pytest.raises(JobbergateApiError, match="base URL"):
            JobbergateClient(url)

    @pytest.mark.parametrize("scheme", ["https", "ftp"])
    def test_a_password_in_the_base_url_is_refused_and_not_shown(self, scheme: str) -> None:
        with pytest.raises(JobbergateApiError) as refused:
            JobbergateClient(f"{scheme}://me:pass-word@a")
        assert "pass-word" not in str(refused.value)

    @pytest.mark.parametrize("url", ["https://a/", "https://a/jobbergate", "https://a/jobbergate/"])
    def test_the_prefix_may_be_named(self, url: str) -> None:
        assert JobbergateClient(url).base_url == "https://a"


@dataclass
class FailingApi:
    """An API that answers as it is told, as the real one cannot be made to. It says what it was asked."""

    answers: list[tuple[int, Mapping[str, str], str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def failing_api(*answers: tuple[int, str] | tuple[int, str, Mapping[str, str]] | None) -> Iterator[FailingApi]:
    """One whose answers are these in turn, None for a connection that it ends; then a job script."""
    told = FailingApi()
    waiting: list[Any] = list(answers)
    lock = threading.Lock()

    class Api(Handler):
        protocol_version = "HTTP/1.1"

        def handle_all(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                told.asked.append((self.command, self.path))
                answer = waiting.pop(0) if waiting else (200, SCRIPT)
            if answer is None:
                self.close_connection = True
                return
            status, text, *more = answer
            self.say(status, text.encode(), *more)

        do_GET = do_PUT = do_POST = do_DELETE = handle_all

    with serving(Api) as url:
        told.url = url
        yield told


MOMENT = "2026-01-01T00:00:00"
SCRIPT = json.dumps(
    {"id": 1, "name": "a", "owner_email": "b", "created_at": MOMENT, "updated_at": MOMENT, "is_archived": False}
)


def failing_client(api: FailingApi, **options: Any) -> JobbergateClient:
    return JobbergateClient(api.url, **{"backoff": 0.001, **options})


class TestRepeating:
    @pytest.mark.parametrize("failure", [None, (500, "x"), (502, "x"), (503, "x"), (504, "x"), (429, "x")])
    def test_a_question_is_asked_again(self, failure: tuple[int, str] | None) -> None:
        with failing_api(failure, failure) as api, failing_client(api) as client:
            assert client.send(calls.get_job_script(1)).name == "a"
            assert len(api.asked) == 3

    @pytest.mark.parametrize("failure", [None, (500, "x"), (502, "x"), (504, "x")])
    def test_what_may_have_been_made_is_not_made_again(self, failure: tuple[int, str] | None) -> None:
        with failing_api(failure) as api, failing_client(api) as client:
            with pytest.raises(JobbergateApiError) as failed:
                client.send(calls.create_job_script("a"))
            assert failed.value.passing
            assert len(api.asked) == 1

    @pytest.mark.parametrize("status", [429, 503])
    def test_what_was_not_begun_is_made_later(self, status: int) -> None:
        with failing_api((status, "later")) as api, failing_client(api) as client:
            assert client.send(calls.create_job_script("a")).name == "a"
            assert len(api.asked) == 2

    def test_it_gives_up_in_the_end_with_the_last_words(self) -> None:
        with failing_api(*[(503, '{"detail": "maintenance"}')] * 9) as api, failing_client(api, retries=2) as client:
            with pytest.raises(JobbergateResponseError, match="maintenance"):
                client.send(calls.get_job_script(1))
            assert len(api.asked) == 3

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
    def test_what_is_refused_is_not_repeated(self, status: int) -> None:
        with failing_api((status, "no")) as api, failing_client(api) as client:
            with pytest.raises(JobbergateResponseError, match="no"):
                client.send(calls.get_job_script(1))
            assert len(api.asked) == 1

    async def test_a_loop_goes_on_while_it_waits(self) -> None:
        with failing_api((503, "x", {"Retry-After": "1"})) as api:
            async with failing_client(api) as client:
                asking = {asyncio.create_task(client.asend(calls.get_job_script(1))) for _ in range(2)}
                # One of them is told to wait, and the other one is not held up by that.
                done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                assert (len(done), len(waiting)) == (1, 1)
                assert {(await one).name for one in asking} == {"a"}
            assert len(api.asked) == 3

    def test_a_server_that_is_not_there_is_named(self) -> None:
        with failing_api() as api:
            url = api.url
        with JobbergateClient(url, retries=1, backoff=0.001) as client:
            with pytest.raises(JobbergateRequestError, match="does not answer") as failed:
                client.send(calls.create_job_script("a"))
            assert failed.value.passing
            assert url in str(failed.value)

    def test_an_address_that_leads_elsewhere_is_no_base_url(self) -> None:
        moved = 308, "", {"Location": "https://elsewhere.example.org/"}
        with failing_api(moved) as api, failing_client(api) as client:
            with pytest.raises(JobbergateResponseError, match=r"308.*base URL is the API's own address"):
                client.send(calls.get_job_script(1))
            assert len(api.asked) == 1

    def test_a_pause_is_no_longer_than_30_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        with failing_api((503, "x", {"Retry-After": "86400"})) as api, failing_client(api) as client:
            assert client.send(calls.get_job_script(1)).name == "a"
        assert pauses == [30.0]

    @pytest.mark.parametrize("text", ["<html>", "[]", '{"id": "x"}'])
    def test_an_answer_that_is_none_says_so(self, text: str) -> None:
        wrong = pytest.raises(ResponseModelError, match="none of the Jobbergate API's")
        with failing_api((200, text)) as api, failing_client(api) as client, wrong:
            client.send(calls.get_job_script(1))


class TestOutages:
    def test_a_token_that_expires_in_the_middle_is_renewed(
        self, jobbergate_api: JobbergateApi, person: JobbergateClient, tmp_path: Path
    ) -> None:
        names = [f"long-{number}" for number in range(3)]
        for name in names:
            person.send(calls.create_job_script(name))
        provider = jobbergate_api.provider
        with connect(jobbergate_api, AGENT, tmp_path) as client:
            read: Iterator[JobScript] = client.items(calls.list_job_scripts(Selection(search="long-", size=1)))
            assert next(read).name == "long-0"
            given = provider.given["client_credentials"]
            # As if an hour had gone by.
            _expire(client, provider)
            assert [script.name for script in read] == names[1:]
            assert provider.given["client_credentials"] == given + 1

    def test_an_api_that_comes_back_is_asked_on(
        self, jobbergate_api: JobbergateApi, folder: Path, person: JobbergateClient
    ) -> None:
        made = new_job_script(person, "kept")
        with connect(jobbergate_api, PERSON, folder, timeout=1.0, retries=30, backoff=0.2) as client:
            jobbergate_api.pause()
            back = threading.Timer(2.5, jobbergate_api.resume)
            back.start()
            try:
                assert client.send(calls.get_job_script(made)).name == "kept"
            finally:
                back.join()

    def test_while_the_provider_is_away_a_valid_token_will_do(
        self, jobbergate_api: JobbergateApi, person: JobbergateClient
    ) -> None:
        made = new_job_script(person, "still there")
        with _failing(jobbergate_api.provider):
            assert person.send(calls.get_job_script(made)).name == "still there"

    def test_without_a_provider_and_a_valid_token_it_says_that_it_may_pass(
        self, jobbergate_api: JobbergateApi, tmp_path: Path
    ) -> None:
        with connect(jobbergate_api, AGENT, tmp_path) as client:
            with _failing(jobbergate_api.provider), pytest.raises(ProviderUnreachable, match="503") as failed:
                client.send(calls.report_cluster(60))
            assert failed.value.passing
            client.send(calls.report_cluster(60))

    def test_a_401_in_the_middle_is_answered_with_another_token(
        self, jobbergate_api: JobbergateApi, tmp_path: Path
    ) -> None:
        provider = jobbergate_api.provider
        # A token that is valid here, and not there.
        bad = provider.token(**{"azp": AGENT, **provider.clients[AGENT]}, aud="somebody")
        folder = tmp_path / AGENT
        folder.mkdir()
        Token(folder, TokenType.ACCESS, bad).save_to_cache()
        with connect(jobbergate_api, AGENT, tmp_path) as client:
            client.send(calls.report_cluster(60))
        assert Token(folder, TokenType.ACCESS).load_from_cache().content != bad

    def test_an_upload_is_sent_again_too(self, jobbergate_api: JobbergateApi, tmp_path: Path) -> None:
        provider, folder = jobbergate_api.provider, tmp_path / AGENT
        folder.mkdir()
        Token(folder, TokenType.ACCESS, provider.access_token(AGENT)).save_to_cache()
        auth = JobbergateAuthHandler(folder, provider.domain, AGENT, SECRET, may_login=False)
        file = json.dumps({"parent_id": 1, "filename": "job.sh", "file_type": "ENTRYPOINT"})
        with failing_api((401, "no"), (200, file)) as api, JobbergateClient(api.url, auth) as client:
            client.send(calls.upload_job_script_file(1, FileType.ENTRYPOINT, "job.sh", b"#!/bin/sh\n"))
            assert len(api.asked) == 2


def _expire(client: JobbergateClient, provider: Any) -> None:
    auth = client._auth
    assert isinstance(auth, JobbergateAuthHandler)
    old = provider.token(-1, **{"azp": AGENT, **provider.clients[AGENT]})
    auth._access = auth._access.replace(content=old)
    auth._access.save_to_cache()
    assert auth._access.is_expired(time.time())


@contextmanager
def _failing(provider: Any) -> Iterator[Callable[[], None]]:
    provider.failing = 503, "away"
    try:
        yield lambda: None
    finally:
        provider.failing = None
