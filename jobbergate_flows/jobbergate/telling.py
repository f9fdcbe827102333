"""Telling the API what waits in the ledger: one message, once, whatever became of an earlier try."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.calls import MAX_TEXT, Call, Listing, Selection
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.errors import (
    AuthenticationError,
    JobbergateError,
    JobbergateRequestError,
    JobbergateResponseError,
    ResponseModelError,
)
from jobbergate_flows.jobbergate.links import Create, Link, Links, Rejected, State, Submitted, Waiting
from jobbergate_flows.jobbergate.models import FileType, JobSubmissionDetails, NewSubmission, SubmissionStatus
from jobbergate_flows.jobbergate.states import is_end, slurm_job_id
from jobbergate_flows.slurm.submission import SubmissionOrder

_logger = logging.getLogger(__name__)
GRACE_SECONDS = 5.0
"""So long what was asked for, and whose answer was lost, must not be there before it is asked for again."""
_OVER = (SubmissionStatus.DONE, SubmissionStatus.ABORTED, SubmissionStatus.REJECTED)


class Outcome(StrEnum):
    """What follows from an error.

    Its API takes nothing now, of nobody; or it does not take this message now; or it will never take it.
    """

    AWAY = "away"
    LATER = "later"
    REFUSED = "refused"


def mark(key: str) -> str:
    """What the description of a mirror begins with: by it an attempt's entries are found. Pure."""
    return f"jobbergate-flows {key}"


def create_of(order: SubmissionOrder, page: str | None) -> Create:
    """The job script and the job submission that an order is in Jobbergate. Pure.

    Its secret is not among what is told.

    Args:
        page: The URL of the run's page.
    """
    key = order.key.token
    directory = order.run_directory
    return Create(
        name=_text(order.name),
        description=_text(f"{mark(key)}: {page}" if page else mark(key)),
        script_name=order.script_file,
        script=_utf8(order.script.text),
        # The API refuses a longer one, and then all.
        directory=directory if len(directory) <= MAX_TEXT else "",
        files={name: _utf8(content) for name, content in order.script.files.items()},
        sbatch_arguments=tuple(_text(argument) for argument in order.arguments),
    )


async def tell(client: JobbergateClient, links: Links, waiting: Waiting, *, grace: float = GRACE_SECONDS) -> bool:
    """Tell an API one message, which is then no longer waiting.

    What an earlier try, whose answer was lost, has done already counts as done.

    Args:
        grace: Seconds; see `GRACE_SECONDS`.

    Returns:
        Whether the link's submission has ended with it.

    Raises:
        JobbergateError: It was not taken; `outcome_of` says what follows.
    """
    link, message = waiting.link, waiting.message
    over = False
    match message:
        case Create():
            await _make(client, links, waiting, message, grace)
        case Submitted(job):
            await _told(
                client,
                link,
                lambda submission: calls.tell_submitted(submission, job),
                lambda there: there.slurm_job_id == job.slurm_job_id,
            )
        case State(job):
            await _told(
                client,
                link,
                lambda submission: calls.tell_job(submission, job),
                lambda there: there.status in _OVER,
            )
            over = is_end(job.slurm_job_state)
        case Rejected(reason):
            await _told(
                client,
                link,
                lambda submission: calls.tell_rejected(submission, reason),
                lambda there: there.status is SubmissionStatus.REJECTED,
            )
            over = True
    if over:
        # First: whoever dies in between tells it again, and no link stays open of which nothing more comes.
        await asyncio.to_thread(links.attach, link.id, ended=True)
    await asyncio.to_thread(links.sent, waiting.id)
    return over


def outcome_of(error: JobbergateError) -> Outcome:
    """What follows from an error of a client's. Pure."""
    if isinstance(error, AuthenticationError | JobbergateRequestError | ResponseModelError):
        return Outcome.AWAY
    if not isinstance(error, JobbergateResponseError):
        return Outcome.REFUSED
    if error.status in (401, 405, 429, 502, 503, 504):
        return Outcome.AWAY
    # That a permission, or the client's own name, is missing is the site's to mend; so is a wrong base URL.
    lacking = error.status == 403 and "Mismatch on attribute" not in error.detail
    if lacking or error.detail == "Not Found" or error.detail.startswith("Access token does not contain"):
        return Outcome.AWAY
    return Outcome.LATER if error.passing else Outcome.REFUSED


async def _told(
    client: JobbergateClient,
    link: Link,
    call: Callable[[int], Call[None]],
    has: Callable[[JobSubmissionDetails], bool],
) -> None:
    if link.submission_id is None:
        raise JobbergateError("the job submission was not made", where=f"the mirror of {link.key}")
    try:
        await client.asend(call(link.submission_id))
    except JobbergateResponseError as error:
        # 400: nothing more can be told, perhaps because it was told before.
        if error.status != 400 or outcome_of(error) is Outcome.AWAY:
            raise
        if not has(await client.asend(calls.get_job_submission(link.submission_id))):
            raise


async def _make(client: JobbergateClient, links: Links, waiting: Waiting, create: Create, grace: float) -> None:
    link, tried = waiting.link, waiting.tries > 0
    if link.key is None or waiting.slurm_job_id is None:
        raise JobbergateError("the ledger has lost the job of a mirror", where=f"link {link.id}")
    job_id = slurm_job_id(waiting.slurm_job_id)
    await asyncio.to_thread(links.trying, waiting.id)
    script_id = link.job_script_id
    if script_id is None:
        script_id = await _found(client, link.key, calls.list_job_scripts, grace) if tried else None
        if script_id is None:
            script_id = (await client.asend(calls.create_job_script(create.name, create.description))).id
        await asyncio.to_thread(links.attach, link.id, job_script_id=script_id)
    await _upload(client, links, link, script_id, create, tried)
    submission_id = None
    if tried:
        submission_id = await _found(
            client, link.key, lambda selection: calls.list_job_submissions(selection, of_job_script=script_id), grace
        )
    if submission_id is None:
        new = NewSubmission(
            name=create.name,
            description=create.description,
            job_script_id=script_id,
            slurm_job_id=job_id,
            execution_directory=create.directory or None,
            sbatch_arguments=create.sbatch_arguments,
        )
        submission_id = (await client.asend(calls.create_job_submission(new))).id
    await asyncio.to_thread(links.attach, link.id, submission_id=submission_id)


async def _upload(
    client: JobbergateClient, links: Links, link: Link, script_id: int, create: Create, tried: bool
) -> None:
    there: set[str] = set()
    if tried:
        there = {file.filename for file in (await client.asend(calls.get_job_script(script_id))).files or ()}
    if create.script_name not in there:
        content = create.script.encode()
        await client.asend(calls.upload_job_script_file(script_id, FileType.ENTRYPOINT, create.script_name, content))
    for name, text in create.files.items():
        if name in there:
            continue
        try:
            await client.asend(calls.upload_job_script_file(script_id, FileType.SUPPORT, name, text.encode()))
        except JobbergateResponseError as error:
            if outcome_of(error) is not Outcome.REFUSED:
                raise
            # The job is what counts; too large a file beside its script is no reason not to show it.
            _logger.warning("Jobbergate does not take the file %s of job script %s: %s", name, script_id, error.detail)
            await asyncio.to_thread(links.attach, link.id, trouble=f"without the file {name}: {error.detail}")


async def _found(
    client: JobbergateClient, key: str, listing: Callable[[Selection], Listing[Any]], grace: float
) -> int | None:
    """The entry that an earlier try has made; its request may still be on its way."""
    return await _look(client, key, listing) or await _after(grace, lambda: _look(client, key, listing))


async def _look(client: JobbergateClient, key: str, listing: Callable[[Selection], Listing[Any]]) -> int | None:
    # The API looks for each word by itself.
    selection = Selection(search=key, include_archived=True)
    async for item in client.aitems(listing(selection)):
        if (item.description or "").startswith(mark(key)):
            found: int = item.id
            return found
    return None


async def _after(seconds: float, look: Callable[[], Awaitable[int | None]]) -> int | None:
    await asyncio.sleep(seconds)
    return await look()


def _text(text: str) -> str:
    text = _utf8(text).replace("\0", "�")
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
