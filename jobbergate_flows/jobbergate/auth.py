"""Logging in to Jobbergate: `JobbergateAuthHandler`, the `auth=` of requests to its API.

auth = JobbergateAuthHandler(Path("~/.local/share/jobbergate3/token").expanduser(),
                             "https://auth.example.org/realms/example", "cli")
httpx.get("https://jobbergate.example.org/jobbergate/job-scripts", auth=auth)
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import httpx
from pydantic import SecretStr

from jobbergate_flows.jobbergate import tls
from jobbergate_flows.jobbergate.errors import AuthenticationError, ProviderUnreachable, TokenError
from jobbergate_flows.jobbergate.oidc import DeviceCodeData, Provider, TokenInformation
from jobbergate_flows.jobbergate.steps import Clock, Steps, SystemClock, Wait, arun, run
from jobbergate_flows.jobbergate.tokens import (
    RENEWAL_SECONDS,
    IdentityData,
    Token,
    TokenLock,
    TokenType,
    identity,
    read_token,
)

__all__ = [
    "RENEWAL_SECONDS",
    "AuthenticationError",
    "DeviceCodeData",
    "IdentityData",
    "JobbergateAuthHandler",
    "ProviderUnreachable",
    "Token",
    "TokenError",
    "TokenType",
    "print_login_url",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.05
# A renewal is four requests at most; one that takes longer hangs.
_LOCK_SECONDS = 120.0
# A token that is refused although it is so new is refused for another reason than its age.
_NEW_SECONDS = 60.0


class HasHeaders(Protocol):
    """A request of any library, such as requests' `PreparedRequest`."""

    @property
    def headers(self) -> Any:
        """A mutable mapping."""


R = TypeVar("R", bound=HasHeaders)


def print_login_url(device_code_data: DeviceCodeData) -> None:
    """Print where to log in, to standard error: standard output may be somebody's JSON."""
    print(device_code_data.invitation, file=sys.stderr, flush=True)


@dataclass(eq=False)
class JobbergateAuthHandler(httpx.Auth):
    """A valid access token for each request: what httpx (with or without an event loop) and requests take as `auth=`.

    A token is renewed 60 s before it expires, by one caller at a time. The others wait, also those of other threads,
    event loops, and processes with the same folder, and take the tokens, within a process also the error, that it got.
    The files are those of Jobbergate's own programs, so a login there counts here, and the other way round. Methods
    that begin with `a` are for event loops; the others block.

    Args:
        cache_directory: The folder of token files; made, for its user only, when it is not there. The Jobbergate CLI
            has `~/.local/share/jobbergate3/token`.
        login_domain: The realm's URL, such as `https://auth.example.org/realms/example`.
        login_client_id: The OIDC client.
        login_client_secret: The client's secret, if it has one: then no person needs to log in.
        login_url_handler: Told where a person logs in.
        may_login: Whether a request may wait for a person to log in; for a service False.
        login_seconds: How long a person has to log in, at most; less where the provider says so.
        timeout: Seconds without a byte after which the provider counts as unreachable.
        verify: Whether its certificate must be valid, or the path of a file with the CAs to trust.
        clock: What tells the time.

    Raises:
        AuthenticationError: The login domain is no URL; a file of CAs cannot be read.
    """

    cache_directory: Path
    login_domain: str
    login_client_id: str = "default"
    login_client_secret: SecretStr | str | None = field(default=None, repr=False)
    login_url_handler: Callable[[DeviceCodeData], None] = field(default=print_login_url, repr=False)
    _: KW_ONLY
    may_login: bool = True
    login_seconds: float = 900.0
    timeout: float = 15.0
    verify: bool | str = True
    clock: Clock = field(default_factory=SystemClock, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.login_client_secret, str):
            self.login_client_secret = SecretStr(self.login_client_secret)
        # An empty one is none: forms and files have it so.
        self.login_client_secret = self.login_client_secret or None
        self._provider = Provider(self.login_domain, self.login_client_id, self.login_client_secret, self.timeout)
        self._context = tls.context(self.verify, AuthenticationError)
        self._access = Token(self.cache_directory, TokenType.ACCESS)
        self._refresh_token = Token(self.cache_directory, TokenType.REFRESH)
        # What the files held when they were last looked at or written: access, refresh.
        self._filed = ("", "")
        self._made_at = float("-inf")
        self._busy = threading.Lock()
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        # How many renewals have ended, and how the last one failed: for those who waited meanwhile.
        self._ended = 0
        self._failure: tuple[str | None, AuthenticationError] | None = None

    # For requests

    def __call__(self, request: R) -> R:
        """Put the token into a request of the library requests.

        Raises:
            AuthenticationError: See `acquire_access`.
        """
        request.headers["Authorization"] = self.acquire_access()
        return request

    # For httpx

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`. A request that the API answers with 401 is sent once more, if there is another token.

        Raises:
            AuthenticationError: See `acquire_access`.
        """
        bearer = self.acquire_access()
        request.headers["Authorization"] = bearer
        answer = yield request
        if answer.status_code == httpx.codes.UNAUTHORIZED and _can_be_sent_again(request):
            try:
                request.headers["Authorization"] = self._run(self._acquire(self._ended, bearer))
            except AuthenticationError as error:
                # What the API said is what the caller gets.
                _log.debug("the API refuses the token, and there is no other: %s", error)
                return
            yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `sync_auth_flow`."""
        bearer = await self.aacquire_access()
        request.headers["Authorization"] = bearer
        answer = yield request
        if answer.status_code == httpx.codes.UNAUTHORIZED and _can_be_sent_again(request):
            try:
                request.headers["Authorization"] = await self._arun(self._acquire(self._ended, bearer))
            except AuthenticationError as error:
                _log.debug("the API refuses the token, and there is no other: %s", error)
                return
            yield request

    # For people

    def acquire_access(self) -> str:
        """The value of the header `Authorization`, with a token that is valid.

        Tried in turn: the token at hand, the files, the refresh token, the client secret, a person's login.

        Raises:
            ProviderUnreachable: None of them gave a token, and the provider did not answer.
            AuthenticationError: None of them gave a token; the message says why of each.
        """
        if self._is_fresh():
            return self._access.bearer_token
        return self._run(self._acquire(self._ended))

    async def aacquire_access(self) -> str:
        """See `acquire_access`."""
        if self._is_fresh():
            return self._access.bearer_token
        return await self._arun(self._acquire(self._ended))

    def login(self) -> None:
        """Log a person in: `login_url_handler` is told where, then it waits, and keeps the tokens.

        Raises:
            AuthenticationError: The person declined or was too late, or the provider refuses or does not answer.
            TokenError: The tokens cannot be kept; they are used by this handler all the same.
        """
        self._run(self._alone(self._log_in))

    async def alogin(self) -> None:
        """See `login`."""
        await self._arun(self._alone(self._log_in))

    def logout(self) -> None:
        """Forget the tokens, and remove their files. The provider is not told.

        Raises:
            TokenError: A file cannot be removed.
        """
        self._run(self._with_files(self._log_out))

    async def alogout(self) -> None:
        """See `logout`."""
        await self._arun(self._with_files(self._log_out))

    def refresh_tokens(self) -> None:
        """Get new tokens for the refresh token, and keep them.

        Raises:
            AuthenticationError: There is no refresh token, or the provider refuses it, or does not answer.
            TokenError: The tokens cannot be kept; they are used by this handler all the same.
        """
        self._run(self._alone(lambda: self._with_files(self._refresh)))

    async def arefresh_tokens(self) -> None:
        """See `refresh_tokens`."""
        await self._arun(self._alone(lambda: self._with_files(self._refresh)))

    def get_access_from_secret(self) -> None:
        """Get a token for the client itself, and keep it.

        Raises:
            AuthenticationError: There is no client secret, or the provider refuses it, or does not answer.
            TokenError: The tokens cannot be kept; they are used by this handler all the same.
        """
        self._run(self._alone(lambda: self._with_files(self._use_secret)))

    async def aget_access_from_secret(self) -> None:
        """See `get_access_from_secret`."""
        await self._arun(self._alone(lambda: self._with_files(self._use_secret)))

    def load_from_cache(self) -> None:
        """Load the tokens that are in the folder.

        Raises:
            TokenError: There is no access token, or a file cannot be read or holds no token.
        """
        self._filed = ("", "")
        self._take_files()
        self._access.load_from_cache()

    def save_to_cache(self) -> None:
        """Write the tokens at hand to the folder; it is made, for its user only, when it is not there.

        Raises:
            TokenError: They cannot be written.
        """
        self._make_folder()
        # The one that cannot be had again comes first.
        self._refresh_token.save_to_cache()
        self._access.save_to_cache()
        self._filed = (self._access.content or self._filed[0], self._refresh_token.content or self._filed[1])

    def get_identity_data(self) -> IdentityData:
        """Whose the access token is.

        Raises:
            AuthenticationError: There is none, see `acquire_access`; TokenError when it does not say.
        """
        self.acquire_access()
        return identity(self._access)

    async def aget_identity_data(self) -> IdentityData:
        """See `get_identity_data`."""
        await self.aacquire_access()
        return identity(self._access)

    # One at a time

    def _run(self, steps: Steps[T]) -> T:
        try:
            turn = self._turns.get(asyncio.get_running_loop())
        except RuntimeError:
            turn = None
        if turn is not None and turn.locked():
            raise AuthenticationError(
                "a renewal in this event loop is under way, and blocking the loop would hold it up for ever",
                hint="await the method of the same name that begins with `a`, or use httpx.AsyncClient",
            )
        return run(steps, self.clock, self._context)

    async def _arun(self, steps: Steps[T]) -> T:
        # The coroutines of a loop queue up here, so that only one of them looks whether it is its turn.
        async with self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            return await arun(steps, self.clock, self._context)

    def _alone(self, work: Callable[[], Steps[T]]) -> Steps[T]:
        """Work while no other thread or loop has this handler."""
        while not self._busy.acquire(blocking=False):
            yield Wait(_LOOK_SECONDS)
        try:
            return (yield from work())
        finally:
            self._busy.release()

    def _with_files(self, work: Callable[[], Steps[T]]) -> Steps[T]:
        """Work while no other process renews this folder's tokens."""
        with suppress(TokenError):
            # Without a folder nothing is locked; saving says what is wrong.
            self._make_folder()
        lock = TokenLock(self.cache_directory)
        until = self.clock.now() + _LOCK_SECONDS
        try:
            while not lock.claim():
                if self.clock.now() > until:
                    raise TokenError(
                        f"another process has been renewing the tokens for {_LOCK_SECONDS:g} s",
                        where=str(lock.path),
                        hint="end it: `fuser` names it",
                    )
                yield Wait(_LOOK_SECONDS)
            return (yield from work())
        finally:
            lock.release()

    def _acquire(self, seen: int, refused: str | None = None) -> Steps[str]:
        """`acquire_access`, for who saw so many renewals end before; the token that the API refused does not count."""
        return (yield from self._alone(lambda: self._acquire_alone(seen, refused)))

    def _acquire_alone(self, seen: int, refused: str | None) -> Steps[str]:
        waited = self._ended != seen
        if self._is_fresh(refused) or (waited and self._is_usable(refused)):
            return self._access.bearer_token
        if waited and self._failure is not None and self._failure[0] == refused:
            raise copy(self._failure[1])
        self._failure = None
        try:
            return (yield from self._obtain(refused))
        except AuthenticationError as error:
            # Without its traceback, whose frames hold tokens.
            self._failure = refused, copy(error)
            raise
        finally:
            self._ended += 1

    # Getting tokens

    def _obtain(self, refused: str | None) -> Steps[str]:
        if refused is not None and self.clock.now() - self._made_at < _NEW_SECONDS:
            raise AuthenticationError(
                "the API refuses a token that is new", hint="see its audience, its issuer, and the clocks"
            )
        failures: list[AuthenticationError] = []
        try:
            yield from self._with_files(lambda: self._renew(refused, failures))
        except AuthenticationError as error:
            failures.append(error)
        if not self._is_usable(refused) and self.may_login and refused is None:
            yield from self._attempt(self._log_in, failures)
        if self._is_usable(refused):
            return self._access.bearer_token
        raise self._all_failed(failures)

    def _renew(self, refused: str | None, failures: list[AuthenticationError]) -> Steps[None]:
        """Files, refresh token, client secret, until one of them gives a token that has time left."""
        try:
            self._take_files()
        except TokenError as error:
            failures.append(error)
        if self._is_fresh(refused):
            return
        for procedure in (self._refresh, self._use_secret):
            # A token just made counts, however short its life is; and one that could not be kept.
            if (yield from self._attempt(procedure, failures)) or self._is_fresh(refused):
                return

    def _attempt(self, procedure: Callable[[], Steps[None]], failures: list[AuthenticationError]) -> Steps[bool]:
        try:
            yield from procedure()
        except AuthenticationError as error:
            _log.debug("no access token: %s", error)
            failures.append(error)
            return False
        return True

    def _refresh(self) -> Steps[None]:
        with suppress(TokenError):
            # Of the access token; the refresh token is taken before.
            self._take_files()
        while True:
            used = self._refresh_token.content
            if not used:
                raise AuthenticationError("there is no refresh token", hint="log in")
            if "exp" in self._refresh_token.data and self._refresh_token.is_expired(self.clock.now()):
                raise AuthenticationError("the refresh token has expired", hint="log in again")
            try:
                tokens = yield from self._provider.refresh(used)
            except AuthenticationError:
                # Jobbergate's own programs take no lock: one of them may have used it up just now.
                with suppress(TokenError):
                    self._take_files()
                if self._refresh_token.content == used:
                    raise
                if self._is_fresh():
                    return None
            else:
                return self._keep(tokens)

    def _use_secret(self) -> Steps[None]:
        self._keep((yield from self._provider.client_credentials()))

    def _log_in(self) -> Steps[None]:
        # Not with the lock of the files: a person may take minutes, or never come.
        tokens = yield from self._provider.device(self.login_url_handler, self.clock, self.login_seconds)
        yield from self._with_files(lambda: self._kept(tokens))

    def _kept(self, tokens: TokenInformation) -> Steps[None]:
        with suppress(TokenError):
            self._take_files()
        # Nobody else's session goes on in this one.
        self._forget()
        if tokens.refresh_token is None:
            with suppress(TokenError):
                self._refresh_token.clear_cache()
                self._filed = self._filed[0], ""
        self._keep(tokens)
        yield from ()

    def _log_out(self) -> Steps[None]:
        self._forget()
        self._filed = ("", "")
        self._access.clear_cache()
        self._refresh_token.clear_cache()
        yield from ()

    def _keep(self, tokens: TokenInformation) -> None:
        if tokens.refresh_token is not None and tokens.refresh_token.get_secret_value():
            self._refresh_token = self._refresh_token.replace(content=tokens.refresh_token.get_secret_value())
        try:
            self._use(tokens.access_token.get_secret_value())
        finally:
            # Whatever is wrong with the access token: the refresh token before is used up.
            self._save()

    def _use(self, content: str) -> None:
        now = self.clock.now()
        access = self._access.replace(content=content)
        if access.is_expired(now):
            raise TokenError(
                "the provider gave a token that has expired",
                where=self.login_domain,
                hint="compare this machine's clock with the provider's",
            )
        self._access = access
        self._made_at = now

    def _save(self) -> None:
        try:
            self.save_to_cache()
        except TokenError as error:
            _log.warning("tokens are not kept, and will be lost with this process: %s", error)
            raise

    # Tokens at hand

    def _make_folder(self) -> None:
        try:
            self.cache_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TokenError(
                f"the folder for tokens cannot be made: {error.strerror}",
                where=str(self.cache_directory),
                hint="make it, writable for its user, or name another one",
            ) from error

    def _forget(self) -> None:
        self._access = self._access.replace(content="")
        self._refresh_token = self._refresh_token.replace(content="")

    def _take_files(self) -> None:
        """Take what somebody else wrote to the files, or removed from them, since they were last looked at."""
        found, failures = [], []
        for token in (self._access, self._refresh_token):
            try:
                found.append(read_token(token.file_path))
            except TokenError as error:
                # The other one may do.
                found.append("")
                failures.append(error)
        access, refresh = found
        if self._filed != (access, refresh):
            self._filed = access, refresh
            if not any(found) and not failures:
                # Somebody logged out.
                self._forget()
            if refresh:
                self._refresh_token = self._refresh_token.replace(content=refresh)
            if access:
                self._access = self._access.replace(content=access)
                _ = self._access.expires_at
        if failures:
            raise failures[0]

    def _is_fresh(self, refused: str | None = None) -> bool:
        """Whether there is a token that needs no renewal."""
        return self._is_usable(refused) and not self._access.is_due(self.clock.now())

    def _is_usable(self, refused: str | None = None) -> bool:
        """Whether there is a token that has not expired."""
        try:
            return self._access.is_valid(self.clock.now()) and self._access.bearer_token != refused
        except TokenError:
            return False

    def _all_failed(self, failures: list[AuthenticationError]) -> AuthenticationError:
        kind = AuthenticationError
        hint = "log in, for example with `jobbergate-flows jobbergate login`, or set the client's secret"
        if any(isinstance(failure, ProviderUnreachable) for failure in failures):
            kind, hint = ProviderUnreachable, "ask again when the OIDC provider answers"
        reasons = "; ".join(dict.fromkeys(str(failure) for failure in failures)) or "there is none"
        return kind(f"no access token could be had: {reasons}", where=self.login_domain, hint=hint)


def _can_be_sent_again(request: httpx.Request) -> bool:
    # A body that is read from a file or a generator is gone by now.
    return isinstance(request.stream, httpx.ByteStream)
