"""The client of the Jobbergate API: it sends the calls of `calls`, with or without an event loop.

with JobbergateClient("https://jobbergate.example.org", auth) as client:
    application = client.send(calls.get_application("parameter-study"))
    for submission in client.items(calls.list_job_submissions()):
        ...

async with JobbergateClient("https://jobbergate.example.org", auth) as client:
    application = await client.asend(calls.get_application("parameter-study"))
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self, TypeVar

import httpx
from httpx_retries import Retry
from pydantic import ValidationError

from jobbergate_flows.jobbergate import tls
from jobbergate_flows.jobbergate.calls import MAX_FILE_BYTES, PREFIX, Call, Listing, Program
from jobbergate_flows.jobbergate.errors import (
    AuthenticationError,
    JobbergateApiError,
    JobbergateError,
    JobbergateRequestError,
    JobbergateResponseError,
    ResponseModelError,
)
from jobbergate_flows.jobbergate.models import Page

T = TypeVar("T")

# Nothing of the request has been sent then.
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_UNDONE = (429, 503)
_LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
_FAILED = (429, 500, 502, 503, 504)
_MAX_WORDS = 500


class JobbergateClient:
    """An API, as one of its users. Threads may share it; so may coroutines of one event loop.

    A request that did not arrive, or was answered with "not now", is sent again, with growing pauses or those that a
    `Retry-After` says; one whose answer was lost or that failed only where that does no harm (`Call.repeatable`).

    Args:
        base_url: The API's URL, without `/jobbergate`.
        auth: A `JobbergateAuthHandler`, or another of httpx's.
        timeout: Seconds without a byte after which a request has failed.
        retries: How often a request is sent again.
        backoff: Seconds of the first pause; each next one is twice as long, and up to all of it shorter. None is longer
            than 30.
        verify: Whether the API's certificate must be valid, or the path of a file with the CAs to trust.

    Raises:
        JobbergateApiError: The URL is none, or the CAs cannot be read.
    """

    def __init__(
        self,
        base_url: str,
        auth: httpx.Auth | None = None,
        *,
        timeout: float = 15.0,
        retries: int = 4,
        backoff: float = 0.5,
        verify: bool | str = True,
    ) -> None:
        self.base_url = _checked(base_url)
        self._auth = auth
        self._timeout = timeout
        # `Retry` counts the first pause as its second.
        pauses: dict[str, Any] = {
            "total": retries,
            "backoff_factor": backoff / 2,
            "max_backoff_wait": 30.0,
        }
        self._repeated = Retry(**pauses, status_forcelist=_FAILED, retry_on_exceptions=_LOST)
        self._once = Retry(**pauses, status_forcelist=_UNDONE, retry_on_exceptions=_UNSENT)
        self._verify = tls.context(verify, JobbergateApiError)
        self._making = threading.Lock()
        self._sync: httpx.Client | None = None
        self._async: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"JobbergateClient({self.base_url!r})"

    def send(self, call: Call[T]) -> T:
        """Do what a call asks for, and return its answer.

        Raises:
            AuthenticationError: There is no token.
            JobbergateRequestError: The API does not answer.
            JobbergateResponseError: It refuses; with its own words.
            ResponseModelError: It answers what nobody understands.
        """
        with self._making:
            if self._sync is None:
                self._sync = httpx.Client(verify=self._verify, timeout=self._timeout)
        tries = self._tries(call)
        while not tries.over:
            tries.sleep()
            try:
                tries.take(self._sync.send(self._request(call), auth=self._auth))
            except httpx.RequestError as error:
                tries.take(error)
        return self._read(call, tries.outcome)

    async def asend(self, call: Call[T]) -> T:
        """See `send`."""
        tries = self._tries(call)
        while not tries.over:
            await tries.asleep()
            if self._async is None:
                self._async = httpx.AsyncClient(verify=self._verify, timeout=self._timeout)
            try:
                tries.take(await self._async.send(self._request(call), auth=self._auth))
            except httpx.RequestError as error:
                tries.take(error)
        return self._read(call, tries.outcome)

    def items(self, listing: Listing[T]) -> Iterator[T]:
        """The items of a list, each once; a page is asked for when it is needed.

        A list may change while it is read. Where it has become shorter, pages before are read again, because what came
        behind has moved up.

        Raises:
            As for `send`.
        """
        reading = _Reading(listing)
        while reading.number is not None:
            yield from reading.new_items(self.send(listing.page(reading.number)))

    async def aitems(self, listing: Listing[T]) -> AsyncIterator[T]:
        """See `items`."""
        reading = _Reading(listing)
        while reading.number is not None:
            for item in reading.new_items(await self.asend(listing.page(reading.number))):
                yield item

    def perform(self, program: Program[T]) -> T:
        """Do what takes several calls, and return its result.

        Raises:
            As for `send`, and what the program raises.
        """
        try:
            call = next(program)
            while True:
                try:
                    answer = self.send(call)
                except JobbergateError as error:
                    call = program.throw(error)
                else:
                    call = program.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def aperform(self, program: Program[T]) -> T:
        """See `perform`."""
        try:
            call = next(program)
            while True:
                try:
                    answer = await self.asend(call)
                except JobbergateError as error:
                    call = program.throw(error)
                else:
                    call = program.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def close(self) -> None:
        """Close the connections of `send`."""
        if self._sync is not None:
            self._sync.close()
            self._sync = None

    async def aclose(self) -> None:
        """Close the connections of `asend`. To be called in their event loop."""
        # Whoever asks meanwhile has new connections.
        closing, self._async = self._async, None
        if closing is not None:
            await closing.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    def _request(self, call: Call[Any]) -> httpx.Request:
        request = call.build(self.base_url)
        request.extensions = {"timeout": httpx.Timeout(self._timeout).as_dict()}
        return request

    def _tries(self, call: Call[Any]) -> _Tries:
        return _Tries(self._repeated if call.repeatable else self._once)

    def _where(self, call: Call[Any]) -> str:
        return f"{call.method} {self.base_url}{PREFIX}{call.path}"

    def _unanswered(self, call: Call[Any], error: httpx.RequestError | None) -> JobbergateApiError:
        reason = str(error) or type(error).__name__
        return JobbergateRequestError(
            f"the Jobbergate API does not answer: {reason}",
            where=self._where(call),
            hint="see whether it runs, and whether this host reaches it",
        )

    def _read(self, call: Call[T], answer: httpx.Response | httpx.RequestError | None) -> T:
        if not isinstance(answer, httpx.Response):
            raise self._unanswered(call, answer) from answer
        if not answer.is_success:
            raise self._refused(call, answer)
        try:
            return call.read(answer)
        except (ValidationError, ValueError) as error:
            raise ResponseModelError(
                f"the answer is none of the Jobbergate API's: {_first(error)}",
                where=self._where(call),
                hint="see that the base URL is the API's, and which version it has",
            ) from error

    def _refused(self, call: Call[Any], answer: httpx.Response) -> JobbergateResponseError:
        detail = words_of(answer)
        return JobbergateResponseError(
            f"the Jobbergate API answers {answer.status_code}: {detail}",
            status=answer.status_code,
            detail=detail,
            where=self._where(call),
            hint=_HINTS.get(answer.status_code),
        )


_MOVED = "see that the base URL is the API's own address: https where it has that"
_HINTS = {
    **dict.fromkeys((301, 302, 303, 307, 308), _MOVED),
    401: "log in again; if that does not help, the API may not reach its OIDC provider",
    403: "ask the site for the permission, or for the entry's owner",
    404: "see the id, or the identifier",
    413: f"a file may have {MAX_FILE_BYTES >> 20} MiB",
}


class _Tries:
    """The tries of one call, each with a valid token; `outcome` is the newest, and stands once it is `over`."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self.outcome: httpx.Response | httpx.RequestError | None = None
        self.over = False

    def take(self, outcome: httpx.Response | httpx.RequestError) -> None:
        self.outcome = outcome
        again = (
            self._retry.is_retryable_status_code(outcome.status_code)
            if isinstance(outcome, httpx.Response)
            else self._retry.is_retryable_exception(outcome)
        )
        self.over = not again or self._retry.is_exhausted()

    def sleep(self) -> None:
        if self.outcome is not None:
            self._retry = self._retry.increment()
            self._retry.sleep(self.outcome)

    async def asleep(self) -> None:
        if self.outcome is not None:
            self._retry = self._retry.increment()
            await self._retry.asleep(self.outcome)


class _Reading:
    """How far the reading of a list has come."""

    def __init__(self, listing: Listing[Any]) -> None:
        self.number: int | None = 1
        self._listing = listing
        self._seen: set[Any] = set()
        self._total: int | None = None

    def new_items(self, page: Page[T]) -> list[T]:
        """Those of a page that were not there before; then `number` is the page to read next, None after the last."""
        new = [item for item in page.items if self._listing.identify(item) not in self._seen]
        self._seen.update(map(self._listing.identify, new))
        fewer = 0 if self._total is None else self._total - page.total
        self._total = page.total
        if fewer > 0 and page.page > 1:
            self.number = max(1, page.page - math.ceil(fewer / page.size))
        elif page.page < page.pages:
            self.number = page.page + 1
        else:
            self.number = None
        return new


def words_of(answer: httpx.Response) -> str:
    """What the API says of an error, in one line: its `detail`, which is a text or a list of faults."""
    try:
        said = answer.json()
    except ValueError:
        said = answer.text
    detail = said.get("detail", said) if isinstance(said, dict) else said
    if isinstance(detail, list):
        detail = "; ".join(map(_fault, detail))
    words = " ".join(str(detail).split())[:_MAX_WORDS] or answer.reason_phrase
    # They are shown on terminals.
    return "".join(character if character.isprintable() else "�" for character in words)


def _fault(fault: Any) -> str:
    if not isinstance(fault, dict) or "msg" not in fault:
        return str(fault)
    place = ".".join(str(part) for part in fault.get("loc", ()) if part not in ("body", "query", "path"))
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return _fault(error.errors(include_input=False, include_url=False)[0])
    return str(error)


def _checked(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.userinfo:
        raise JobbergateApiError(
            "the base URL names a user", where=str(url.copy_with(userinfo=b"")), hint="log in instead: tokens are sent"
        )
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise JobbergateApiError(
            "the base URL is none", where=base_url, hint="it is the API's, such as https://jobbergate.example.org"
        )
    return base_url.rstrip("/").removesuffix(PREFIX)


__all__ = [
    "AuthenticationError",
    "JobbergateApiError",
    "JobbergateClient",
    "JobbergateRequestError",
    "JobbergateResponseError",
    "ResponseModelError",
]
