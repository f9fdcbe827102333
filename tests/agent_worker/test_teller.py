"""What waits in the ledger is told to the real Jobbergate API: in order, once, whatever is down or dies meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent_worker.jobbergate import teller as teller_module
from agent_worker.jobbergate.clients import JobbergateClients
from agent_worker.jobbergate.showing import show_submissions
from agent_worker.jobbergate.teller import Teller
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate import telling as telling_module
from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from jobbergate_flows.jobbergate.calls import Call, Selection
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.errors import (
    AuthenticationError,
    JobbergateError,
    JobbergateRequestError,
    JobbergateResponseError,
    ResponseModelError,
)
from jobbergate_flows.jobbergate.links import Link, Links, Rejected, State, Submitted
from jobbergate_flows.jobbergate.models import (
    FileType,
    JobData,
    JobSubmissionDetails,
    NewSubmission,
    SubmissionStatus,
)
from jobbergate_flows.jobbergate.telling import create_of, outcome_of
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionKey
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.submission import SubmissionOrder
from tests.agent_worker.conftest import Workshop
from tests.cluster.jobbergate_api import AGENT, MIRROR, JobbergateApi
from tests.cluster.service import free_ports
from tests.cluster.waiting import await_until
from tests.jobbergate.oidc import SECRET

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
GRACE = 0.5
PATIENCE = 60.0


def connect(api: JobbergateApi, folder: Path, name: str = MIRROR, **options: Any) -> JobbergateClient:
    auth = JobbergateAuthHandler(folder / name, api.provider.domain, name, SECRET, may_login=False)
    return JobbergateClient(api.url, auth, **{"timeout": PATIENCE, "retries": 0, **options})


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def client(jobbergate_api: JobbergateApi, tokens: Path) -> Iterator[JobbergateClient]:
    """What a test itself asks with."""
    with connect(jobbergate_api, tokens) as made:
        yield made


class Clients(JobbergateClients):
    """Clients that a test makes."""

    def __init__(self, **made: Callable[[], JobbergateClient]) -> None:
        super().__init__()
        self.made = made

    async def _made(self, api: str) -> JobbergateClient:
        return self.made[api]()


@pytest.fixture
async def clients(jobbergate_api: JobbergateApi, tokens: Path) -> AsyncIterator[Clients]:
    made = Clients(site=lambda: connect(jobbergate_api, tokens))
    yield made
    for api in made.made:
        await made.forget(api)


@asynccontextmanager
async def telling(ledger: Ledger, clients: JobbergateClients, **options: Any) -> AsyncIterator[Teller]:
    teller = Teller(lambda: ledger, clients, seconds=0.05, **{"grace": GRACE, **options})
    running = asyncio.create_task(teller.run())
    try:
        yield teller
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def all_told(links: Links) -> None:
    async def nothing_waits() -> bool:
        return not await asyncio.to_thread(links.waiting)

    await await_until(nothing_waits, PATIENCE, "everything to be told")


async def closed(links: Links, link: Link) -> Link:
    """A link that nothing more is told of, which is noted after the last that is told."""

    async def over() -> Link | None:
        known = await asyncio.to_thread(links.get, link.id)
        return known if known is not None and known.closed else None

    found = await await_until(over, PATIENCE, "the link to be closed")
    assert found is not None
    return found


def order(name: str, **files: str) -> SubmissionOrder:
    return SubmissionOrder(
        JobScript(name=name, text=f"#!/bin/sh\necho {name} é\n", files=files),
        SlurmResources(tasks=2),
        "/scratch/me",
        SubmissionKey.once(),
        secret="PASSWORD=hunter2",
    )


def mirrored(ledger: Ledger, name: str, *, api: str = "site", job_id: str = "4711", **files: str) -> Link:
    """A run that is to be mirrored, whose job Slurm has."""
    made = order(name, **files)
    ledger.intend(
        Submission(
            key=made.key.token, scope="run", call=made.key.token, attempt=0, cluster="hill", user="me", job_name=name,
            directory=made.run_directory, script_digest="", intent_at=NOW,
        )
    )  # fmt: skip
    link = Links(ledger).mirror(api, made.key.token, None, create_of(made, f"http://prefect/runs/{name}"))
    ledger.mark_submitted(made.key.token, job_id, NOW, None, None)
    return link


def data(state: str, reason: str | None = None, job_id: int = 4711) -> JobData:
    return JobData(slurm_job_id=job_id, slurm_job_state=state, slurm_job_info="{}", slurm_job_state_reason=reason)


def submission_of(client: JobbergateClient, links: Links, link: Link) -> JobSubmissionDetails:
    known = links.get(link.id)
    assert known is not None
    assert known.submission_id is not None
    return client.send(calls.get_job_submission(known.submission_id))


def states_of(client: JobbergateClient, submission: int) -> list[str | None]:
    return [one.slurm_job_state for one in client.items(calls.list_progress(submission))]


def entries_of(client: JobbergateClient, link: Link) -> tuple[int, int]:
    """How many job scripts and job submissions there are of a mirror."""
    assert link.key is not None
    of_it = Selection(search=link.key, include_archived=True)
    return len(list(client.items(calls.list_job_scripts(of_it)))), len(
        list(client.items(calls.list_job_submissions(of_it)))
    )


async def test_a_run_is_a_job_script_and_a_submission_that_come_to_its_jobs_end(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients
) -> None:
    link = mirrored(ledger, "study", **{"a.txt": "wörd\n"})
    for state in ("PENDING", "RUNNING", "COMPLETED"):
        links.queue(link.id, State(data(state, f"it is {state}")))

    async with telling(ledger, clients):
        await all_told(links)
        known = await closed(links, link)

    assert (known.ended, known.trouble) == (True, None)
    submission = submission_of(client, links, link)
    assert submission.status is SubmissionStatus.DONE
    assert (submission.name, submission.slurm_job_id, submission.client_id) == ("study", 4711, MIRROR)
    assert submission.execution_directory == f"/scratch/me/study-{link.key}"
    assert submission.description == f"jobbergate-flows {link.key}: http://prefect/runs/study"
    assert submission.sbatch_arguments is not None
    assert "--ntasks=2" in submission.sbatch_arguments
    assert states_of(client, submission.id) == ["PENDING", "RUNNING", "COMPLETED"]
    script = client.send(calls.get_job_script(submission.job_script_id or 0))
    assert {(file.filename, file.file_type) for file in script.files or ()} == {
        ("study.sh", FileType.ENTRYPOINT), ("a.txt", FileType.SUPPORT),
    }  # fmt: skip
    assert client.send(calls.download_job_script_file(script.id, "study.sh")).decode() == "#!/bin/sh\necho study é\n"
    assert client.send(calls.download_job_script_file(script.id, "a.txt")).decode() == "wörd\n"


def test_nothing_of_an_orders_secret_is_told() -> None:
    assert "hunter2" not in repr(create_of(order("study"), None))
    assert "hunter2" not in create_of(order("study"), None).script


@pytest.mark.parametrize("name", ["x" * 400, "a\0b", "é" * 255], ids=["long", "nul", "wide"])
async def test_odd_names_are_told_as_far_as_the_api_takes_them(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients, name: str
) -> None:
    link = mirrored(ledger, name)

    async with telling(ledger, clients):
        await all_told(links)

    submission = submission_of(client, links, link)
    assert submission.name[:100] == name.replace("\0", "�")[:100]
    assert submission.status is SubmissionStatus.SUBMITTED


async def test_a_file_that_the_api_refuses_is_left_out_and_named(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients
) -> None:
    link = mirrored(ledger, "study", **{"large.txt": "x" * (calls.MAX_FILE_BYTES + 1), "small.txt": "x"})
    links.queue(link.id, State(data("COMPLETED")))

    async with telling(ledger, clients):
        await all_told(links)

    submission = submission_of(client, links, link)
    script = client.send(calls.get_job_script(submission.job_script_id or 0))
    assert {file.filename for file in script.files or ()} == {"study.sh", "small.txt"}
    assert submission.status is SubmissionStatus.DONE
    known = links.get(link.id)
    assert known is not None
    assert "large.txt" in (known.trouble or "")


async def test_an_end_with_a_reason_is_aborted_with_that_reason(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients
) -> None:
    link = mirrored(ledger, "study")
    links.queue(link.id, State(data("FAILED", "OutOfMemory: too much")))

    async with telling(ledger, clients):
        await all_told(links)

    submission = submission_of(client, links, link)
    assert (submission.status, submission.report_message) == (SubmissionStatus.ABORTED, "OutOfMemory: too much")


def waiting_in_jobbergate(client: JobbergateClient) -> int:
    script = client.send(calls.create_job_script("study"))
    client.send(calls.upload_job_script_file(script.id, FileType.ENTRYPOINT, "job.sh", b"#!/bin/sh\n"))
    return client.send(calls.create_job_submission(NewSubmission(name="study", job_script_id=script.id))).id


async def test_a_submission_that_came_from_jobbergate_gets_its_job_and_its_end(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients
) -> None:
    link = links.bridge("site", waiting_in_jobbergate(client))
    for message in (Submitted(data("PENDING")), State(data("RUNNING")), State(data("COMPLETED"))):
        links.queue(link.id, message)

    async with telling(ledger, clients):
        await all_told(links)

    submission = submission_of(client, links, link)
    assert (submission.status, submission.slurm_job_id) == (SubmissionStatus.DONE, 4711)
    assert states_of(client, submission.id) == ["PENDING", "RUNNING", "COMPLETED"]


async def test_a_rejection_is_told_with_its_reason_and_ends_the_link(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients
) -> None:
    link = links.bridge("site", waiting_in_jobbergate(client))
    links.queue(link.id, Rejected("no such user"))

    async with telling(ledger, clients):
        await closed(links, link)

    submission = submission_of(client, links, link)
    assert (submission.status, submission.report_message) == (SubmissionStatus.REJECTED, "no such user")
    assert links.open() == []


@pytest.mark.parametrize("what", ["submitted", "rejected", "ended"])
async def test_what_the_api_has_already_counts_as_told(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients, what: str
) -> None:
    submission = waiting_in_jobbergate(client)
    link = links.bridge("site", submission)
    # An earlier life told it, and died before it could note that.
    if what == "rejected":
        client.send(calls.tell_rejected(submission, "no"))
        links.queue(link.id, Rejected("no"))
    else:
        client.send(calls.tell_submitted(submission, data("PENDING")))
        links.queue(link.id, Submitted(data("PENDING")))
        if what == "ended":
            client.send(calls.tell_job(submission, data("COMPLETED")))
        links.queue(link.id, State(data("COMPLETED")))

    async with telling(ledger, clients):
        await all_told(links)

    known = links.get(link.id)
    assert known is not None
    assert (known.ended, known.trouble) == (True, None)
    assert len(states_of(client, submission)) == (1 if what == "rejected" else 2)


async def test_whoever_dies_when_an_end_was_told_leaves_no_link_open_for_ever(
    client: JobbergateClient, links: Links, ledger: Ledger
) -> None:
    class Dying(Links):
        def sent(self, message_id: int) -> None:
            super().sent(message_id)
            raise RuntimeError("died")

    link = links.bridge("site", waiting_in_jobbergate(client))
    links.queue(link.id, Rejected("no"))
    (waiting,) = links.waiting()
    with pytest.raises(RuntimeError, match="died"):
        await telling_module.tell(client, Dying(ledger), waiting)

    known = links.get(link.id)
    assert known is not None
    assert known.ended
    assert links.close_ended() == 1


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_what_happens_while_the_api_is_away_is_told_later_in_order_and_once(
    jobbergate_api: JobbergateApi,
    client: JobbergateClient,
    links: Links,
    ledger: Ledger,
    tokens: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    # A paused one reads what it was sent when it goes on: what nobody waits for any more is done all the same. One that
    # has just started may take longer.
    clients = Clients(site=lambda: connect(jobbergate_api, tokens, timeout=1.0 if how == "paused" else PATIENCE))
    old = mirrored(ledger, f"{how}-before")
    async with telling(ledger, clients, grace=5.0) as teller:
        await all_told(links)
        caplog.clear()
        (jobbergate_api.stop if how == "stopped" else jobbergate_api.pause)()
        try:
            new = mirrored(ledger, f"{how}-meanwhile")
            for link in (old, new):
                for state in ("PENDING", "RUNNING", "COMPLETED"):
                    links.queue(link.id, State(data(state)))

            async def noticed() -> bool:
                return bool(teller.away)

            await await_until(noticed, PATIENCE, "the teller to notice")
            assert len(links.waiting()) == 7
        finally:
            (jobbergate_api.start if how == "stopped" else jobbergate_api.resume)()
        await all_told(links)

        async def well() -> bool:
            return not teller.away

        await await_until(well, PATIENCE, "the teller to be well again")
    for link in (old, new):
        submission = submission_of(client, links, link)
        assert submission.status is SubmissionStatus.DONE
        assert states_of(client, submission.id) == ["PENDING", "RUNNING", "COMPLETED"]
        assert entries_of(client, link) == (1, 1)
    assert caplog.text.count("is told later") == 1
    await clients.forget("site")


_DYING = """
import asyncio, os, sys
from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.links import Links
from jobbergate_flows.jobbergate.telling import tell
from jobbergate_flows.slurm.ledger import Ledger
from pathlib import Path

url, domain, name, secret, folder, ledger, where = sys.argv[1:]

class Dying(Links):
    def attach(self, link, **known):
        if where in known:
            os._exit(9)
        super().attach(link, **known)

    def sent(self, message):
        os._exit(9)

links = Dying(Ledger.open(ledger))
client = JobbergateClient(url, JobbergateAuthHandler(Path(folder), domain, name, secret, may_login=False))
asyncio.run(tell(client, links, links.waiting()[0]))
"""


@pytest.mark.parametrize("where", ["job_script_id", "submission_id", "sent"])
async def test_a_worker_that_is_killed_before_it_notes_what_it_made_makes_nothing_twice(
    jobbergate_api: JobbergateApi,
    client: JobbergateClient,
    links: Links,
    ledger: Ledger,
    ledger_place: str,
    clients: Clients,
    tokens: Path,
    where: str,
) -> None:
    link = mirrored(ledger, f"killed-{where}")
    links.queue(link.id, State(data("COMPLETED")))
    arguments = [
        jobbergate_api.url,
        jobbergate_api.provider.domain,
        MIRROR,
        SECRET,
        tokens / "dying",
        ledger_place,
        where,
    ]
    died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _DYING, *map(str, arguments)])
    assert died.returncode == 9

    async with telling(ledger, clients):
        await all_told(links)

    assert entries_of(client, link) == (1, 1)
    assert submission_of(client, links, link).status is SubmissionStatus.DONE


class Late(JobbergateClient):
    """One whose first request of each that make something arrives when its answer was given up, and it was looked for.

    As with an API that hangs: what it was sent lies in its socket, and is done when it goes on.
    """

    def __init__(self, base_url: str, auth: JobbergateAuthHandler) -> None:
        super().__init__(base_url, auth, timeout=PATIENCE, retries=0)
        self._late: dict[str, asyncio.Task[None]] = {}
        self._looked = asyncio.Event()

    async def asend(self, call: Call[Any]) -> Any:
        if call.method == "POST" and call.path not in self._late:
            self._late[call.path] = asyncio.create_task(self._arrive(call))
            raise JobbergateRequestError("nobody waits for it any more")
        answer = await super().asend(call)
        if "search" in call.params:
            self._looked.set()
        return answer

    async def _arrive(self, call: Call[Any]) -> None:
        await self._looked.wait()
        self._looked.clear()
        await super().asend(call)


async def test_what_arrives_after_it_was_given_up_is_not_made_twice(
    jobbergate_api: JobbergateApi, client: JobbergateClient, links: Links, ledger: Ledger, tokens: Path
) -> None:
    auth = JobbergateAuthHandler(tokens / "late", jobbergate_api.provider.domain, MIRROR, SECRET, may_login=False)
    late = Late(jobbergate_api.url, auth)
    clients = Clients(site=lambda: late)
    link = mirrored(ledger, "late")
    links.queue(link.id, State(data("COMPLETED")))

    async with telling(ledger, clients, grace=2.0):
        await all_told(links)

    assert entries_of(client, link) == (1, 1)
    assert submission_of(client, links, link).status is SubmissionStatus.DONE
    await clients.forget("site")


async def test_what_is_refused_for_good_closes_its_link_and_holds_up_no_other(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    deleted, other = mirrored(ledger, "deleted"), mirrored(ledger, "other")
    async with telling(ledger, clients):
        await all_told(links)
        client.send(calls.delete_job_submission(submission_of(client, links, deleted).id))
        for link in (deleted, other):
            links.queue(link.id, State(data("RUNNING")))
            links.queue(link.id, State(data("COMPLETED")))
        await all_told(links)

    known = links.get(deleted.id)
    assert known is not None
    assert known.closed
    assert "404" in (known.trouble or "")
    assert "404" in caplog.text
    assert submission_of(client, links, other).status is SubmissionStatus.DONE


async def test_a_message_on_which_the_api_fails_holds_up_no_other_run(
    client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if there were hundreds of such messages before the other's.
    monkeypatch.setattr(teller_module, "_SOME", 1)
    poisoned, other = mirrored(ledger, "poisoned"), mirrored(ledger, "other")
    # The API answers 500: PostgreSQL has no place for it.
    links.queue(poisoned.id, State(data("FAILED", "a\0b")))
    links.queue(other.id, State(data("RUNNING")))

    async with telling(ledger, clients) as teller:

        async def only_the_poisoned_waits() -> bool:
            return [one.link.id for one in links.waiting()] == [poisoned.id]

        await await_until(only_the_poisoned_waits, PATIENCE, "the other to be told")
        links.queue(other.id, State(data("COMPLETED")))
        await await_until(only_the_poisoned_waits, PATIENCE, "the other's end to be told")
        assert teller.away == {}
    assert submission_of(client, links, other).status is SubmissionStatus.DONE
    known = links.get(poisoned.id)
    assert known is not None
    assert not known.closed


async def test_a_message_that_cannot_be_told_at_all_holds_up_no_other_run(
    client: JobbergateClient,
    links: Links,
    ledger: Ledger,
    clients: Clients,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # As if there were hundreds of such messages before the others'.
    monkeypatch.setattr(teller_module, "_SOME", 1)
    odd, *others = [mirrored(ledger, name) for name in ("odd", "one", "two")]

    async def tell(client: JobbergateClient, links: Links, waiting: Any, **options: Any) -> bool:
        if waiting.link.id == odd.id:
            raise ValueError("nobody has thought of this")
        return await telling_module.tell(client, links, waiting, **options)

    monkeypatch.setattr(teller_module, "tell", tell)

    async with telling(ledger, clients) as teller:

        async def others_told() -> bool:
            return {waiting.link.id for waiting in links.waiting()} == {odd.id}

        await await_until(others_told, PATIENCE, "the others to be told")
        assert teller.away == {}

    assert [entries_of(client, link) for link in (odd, *others)] == [(0, 0), (1, 1), (1, 1)]
    assert "nobody has thought of this" in caplog.text


async def test_an_api_that_is_down_holds_up_no_other(
    jobbergate_api: JobbergateApi, client: JobbergateClient, links: Links, ledger: Ledger, clients: Clients
) -> None:
    (port,) = free_ports(1)
    clients.made["gone"] = lambda: JobbergateClient(f"http://127.0.0.1:{port}", retries=0)
    gone, here = mirrored(ledger, "gone", api="gone"), mirrored(ledger, "here")
    for link in (gone, here):
        links.queue(link.id, State(data("COMPLETED")))

    async with telling(ledger, clients) as teller:

        async def told() -> bool:
            return not links.waiting("site") and "gone" in teller.away

        await await_until(told, PATIENCE, "the API that is there to be told")
    assert len(links.waiting("gone")) == 2


async def test_permissions_that_are_missing_are_waited_for(
    jobbergate_api: JobbergateApi, client: JobbergateClient, links: Links, ledger: Ledger, tokens: Path
) -> None:
    clients = Clients(site=lambda: connect(jobbergate_api, tokens, AGENT))
    link = mirrored(ledger, "not allowed yet")
    links.queue(link.id, State(data("COMPLETED")))

    async with telling(ledger, clients) as teller:

        async def refused() -> bool:
            return "site" in teller.away

        await await_until(refused, PATIENCE, "the refusal")
        assert len(links.waiting()) == 2
        clients.made["site"] = lambda: connect(jobbergate_api, tokens)
        await all_told(links)

    assert submission_of(client, links, link).status is SubmissionStatus.DONE
    await clients.forget("site")


async def test_of_two_workers_with_one_ledger_one_tells(
    client: JobbergateClient, links: Links, ledger: Ledger, ledger_place: str, clients: Clients
) -> None:
    other = Ledger.open(ledger_place)
    made = [mirrored(ledger, f"shared-{number}") for number in range(5)]
    for link in made:
        links.queue(link.id, State(data("COMPLETED")))

    async with telling(ledger, clients), telling(other, clients):
        await all_told(links)

    assert [entries_of(client, link) for link in made] == [(1, 1)] * 5
    other.close()


async def test_what_is_a_bridges_is_left_to_the_worker_that_has_the_bridge(
    client: JobbergateClient,
    links: Links,
    ledger: Ledger,
    clients: Clients,
    workshop: Workshop,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, ended = links.bridge("", 1, str(uuid4())), links.bridge("", 2)
    links.queue(own.id, Rejected("no"))
    links.attach(ended.id, ended=True)
    mirrored(ledger, "plain")
    # It is the workshop's ledger as well.
    links.bridge("site", 10**6, str(uuid4()))

    showing = asyncio.create_task(show_submissions(workshop.supervisor, clients))
    async with telling(ledger, clients) as teller:

        async def told() -> bool:
            return not links.waiting("site") and len(links.unshown()) == 1

        await await_until(told, PATIENCE, "the mirror to be told of, and shown")
        assert teller.away == {}
    showing.cancel()

    assert [waiting.link.id for waiting in links.waiting("")] == [own.id]
    assert {link.id for link in links.open("")} == {own.id, ended.id}
    assert [link.api for link in links.unshown()] == [""]
    assert "the worker that has the bridge" in caplog.text


async def test_where_metrics_come_after_the_end_a_link_stays_open(
    links: Links, ledger: Ledger, clients: Clients
) -> None:
    link = mirrored(ledger, "measured")
    links.queue(link.id, State(data("COMPLETED")))

    async with telling(ledger, clients, closes=False):
        await all_told(links)
        # Another is told of only when all is done that follows from the end.
        mirrored(ledger, "another")
        await all_told(links)

    known = links.get(link.id)
    assert known is not None
    assert (known.ended, known.closed) == (True, False)


def refusal(status: int, detail: str = "no") -> JobbergateResponseError:
    return JobbergateResponseError("refused", status=status, detail=detail)


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (JobbergateRequestError("no answer"), "away"),
        (AuthenticationError("no token"), "away"),
        (ResponseModelError("a page of HTML"), "away"),
        (refusal(401), "away"),
        (refusal(403, "Not authorized"), "away"),
        (refusal(403, "Mismatch on attribute(s): client_id"), "refused"),
        (refusal(400, "Access token does not contain: 1: email"), "away"),
        (refusal(404, "Not Found"), "away"),
        (refusal(404, "JobSubmission with id=7 not found"), "refused"),
        (refusal(503), "away"),
        (refusal(500), "later"),
        (refusal(400), "refused"),
        (refusal(409), "refused"),
        (refusal(422), "refused"),
        (JobbergateError("no place for the id"), "refused"),
    ],
)
def test_what_follows_from_an_error(error: JobbergateError, follows: str) -> None:
    assert outcome_of(error) == follows
