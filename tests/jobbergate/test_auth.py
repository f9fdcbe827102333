"""Logging in to Jobbergate: against an OIDC provider over real HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobbergate_flows.jobbergate.auth import (
    AuthenticationError,
    DeviceCodeData,
    IdentityData,
    JobbergateAuthHandler,
    ProviderUnreachable,
    Token,
    TokenError,
    TokenType,
)
from jobbergate_flows.jobbergate.steps import SystemClock
from tests.cluster.http_server import answering
from tests.cluster.service import free_ports
from tests.jobbergate.oidc import SECRET, OidcProvider, running_provider

START = 2_000_000_000.0
PATIENCE = 30


class HandClock:
    """A clock that only waiting moves; `waits` is how long each wait was."""

    def __init__(self) -> None:
        self.time = START
        self.waits: list[float] = []
        self.on_wait: Callable[[], object] = lambda: None

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds
        self.waits.append(seconds)
        self.on_wait()

    async def await_(self, seconds: float) -> None:
        self.wait(seconds)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def provider(clock: HandClock) -> Iterator[OidcProvider]:
    with running_provider(OidcProvider(now=clock.now)) as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "share" / "token"


@pytest.fixture
def shown() -> list[DeviceCodeData]:
    """The logins that people were told of."""
    return []


@pytest.fixture
def handler(make: Callable[..., JobbergateAuthHandler]) -> JobbergateAuthHandler:
    return make()


@pytest.fixture
def make(
    provider: OidcProvider, folder: Path, clock: HandClock, shown: list[DeviceCodeData]
) -> Callable[..., JobbergateAuthHandler]:
    def one(**changes: Any) -> JobbergateAuthHandler:
        given: dict[str, Any] = {
            "cache_directory": folder,
            "login_domain": provider.domain,
            "login_client_id": "cli",
            "login_url_handler": shown.append,
            "clock": clock,
        }
        return JobbergateAuthHandler(**given | changes)

    return one


def keep(folder: Path, tokens: Mapping[str, str]) -> None:
    """Write tokens as the Jobbergate CLI does."""
    folder.mkdir(parents=True, exist_ok=True)
    for label in ("access", "refresh"):
        if f"{label}_token" in tokens:
            (folder / f"{label}.token").write_text(tokens[f"{label}_token"])


def kept(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.token"))}


# The files


def test_tokens_of_jobbergates_own_programs_are_used_as_they_are(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path
) -> None:
    session = provider.session()
    keep(folder, session)
    assert handler.acquire_access() == f"Bearer {session['access_token']}"
    assert provider.forms == []


def test_jobbergates_own_programs_find_the_tokens(handler: JobbergateAuthHandler, folder: Path) -> None:
    handler.login()
    files = kept(folder)
    assert list(files) == ["access.token", "refresh.token"]
    assert handler.acquire_access() == f"Bearer {files['access.token']}"


def test_nobody_else_can_read_a_token_at_any_moment(
    handler: JobbergateAuthHandler, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[int, int] = {}
    really_open = os.open

    def watched(*args: Any, **options: Any) -> int:
        descriptor = really_open(*args, **options)
        found = os.fstat(descriptor)
        made.setdefault(found.st_ino, stat.S_IMODE(found.st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        handler.login()
    finally:
        os.umask(before)
    files = [folder / "access.token", folder / "refresh.token"]
    assert [oct(made[path.stat().st_ino]) for path in files] == ["0o600", "0o600"]
    assert [oct(stat.S_IMODE(path.stat().st_mode)) for path in [*files, folder]] == ["0o600", "0o600", "0o700"]


def test_a_file_that_others_had_opened_does_not_get_the_new_token(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path
) -> None:
    old = provider.token(-1)
    keep(folder, provider.session() | {"access_token": old})
    path = folder / "access.token"
    path.chmod(0o666)
    with path.open() as opened:
        handler.acquire_access()
        assert opened.read() == old
    assert path.read_text() != old
    assert oct(stat.S_IMODE(path.stat().st_mode)) == "0o600"


def test_no_other_files_are_left(handler: JobbergateAuthHandler, folder: Path) -> None:
    handler.login()
    handler.refresh_tokens()
    assert sorted(path.name for path in folder.iterdir()) == ["access.token", "refresh.token", "tokens.lock"]


def test_logging_out_removes_tokens_and_files(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path
) -> None:
    handler = make(may_login=False)
    keep(folder, provider.session())
    handler.acquire_access()
    handler.logout()
    assert kept(folder) == {}
    with pytest.raises(AuthenticationError, match="there is no refresh token"):
        handler.acquire_access()
    handler.logout()


def test_who_logged_out_elsewhere_is_not_logged_in_again_by_a_renewal(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    running = make(may_login=False)
    keep(folder, provider.session())
    running.acquire_access()
    make().logout()
    clock.time += provider.lifetime
    with pytest.raises(AuthenticationError):
        running.acquire_access()
    assert kept(folder) == {}


def test_tokens_that_cannot_be_kept_are_used(
    make: Callable[..., JobbergateAuthHandler], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    handler = make(cache_directory=tmp_path / "file" / "token", login_client_secret=SECRET)
    assert handler.acquire_access().startswith("Bearer ey")
    assert "tokens are not kept" in caplog.text
    with pytest.raises(TokenError, match="name another one"):
        handler.save_to_cache()


@pytest.mark.parametrize("content", ["no token", "ey\xff", "eyJhbGciOiJub25lIn0.e30."])
def test_a_file_that_holds_no_usable_token_is_named(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path, content: str
) -> None:
    keep(folder, provider.session())
    (folder / "access.token").write_text(content, encoding="latin-1")
    with pytest.raises(TokenError, match=r"access\.token"):
        make().load_from_cache()
    # The refresh token mends it.
    assert make(may_login=False).acquire_access() != f"Bearer {content}"


def test_a_missing_access_token_is_an_error_of_loading(handler: JobbergateAuthHandler, folder: Path) -> None:
    with pytest.raises(TokenError, match=r"there is no access token.*log in"):
        handler.load_from_cache()


# Renewal


@pytest.mark.parametrize(("left", "renewals"), [(61, 0), (60, 1)])
def test_a_token_is_renewed_60_seconds_before_it_expires(
    handler: JobbergateAuthHandler,
    provider: OidcProvider,
    folder: Path,
    clock: HandClock,
    left: int,
    renewals: int,
) -> None:
    keep(folder, provider.session())
    first = handler.acquire_access()
    clock.time += provider.lifetime - left
    assert (handler.acquire_access() != first) == bool(renewals)
    assert provider.given["refresh_token"] == renewals


def test_a_token_that_lives_for_a_minute_is_not_renewed_for_each_request(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    provider.lifetime = 60
    keep(folder, provider.session())
    for _ in range(6):
        handler.acquire_access()
        clock.time += 10
    assert provider.given["refresh_token"] == 1


def test_rotated_refresh_tokens_are_kept(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    keep(folder, provider.session())
    handler = make(may_login=False)
    for _ in range(3):
        clock.time += provider.lifetime
        handler.acquire_access()
    clock.time += provider.lifetime
    make(may_login=False).acquire_access()
    assert provider.given["refresh_token"] == 4


def test_a_refresh_token_that_stays_is_kept_too(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    provider.rotates = False
    session = provider.session()
    keep(folder, session)
    handler.refresh_tokens()
    handler.refresh_tokens()
    assert kept(folder)["refresh.token"] == session["refresh_token"]


@pytest.mark.parametrize("lifetime", [None, -1])
def test_a_new_refresh_token_is_kept_also_with_an_access_token_that_is_no_good(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path, lifetime: int | None
) -> None:
    keep(folder, provider.session())
    bad = "opaque" if lifetime is None else provider.token(lifetime)
    really_refresh = provider._refresh

    def refresh(form: dict[str, str]) -> tuple[int, Mapping[str, Any]]:
        status, said = really_refresh(form)
        return status, {**said, "access_token": bad}

    provider._refresh = refresh  # type: ignore[method-assign]
    with pytest.raises(TokenError):
        make().refresh_tokens()
    provider._refresh = really_refresh  # type: ignore[method-assign]
    make().refresh_tokens()


def test_an_expired_refresh_token_is_not_sent(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    keep(folder, provider.session())
    clock.time += provider.lifetime * 10
    with pytest.raises(AuthenticationError, match=r"has expired.*log in again"):
        handler.refresh_tokens()
    assert provider.forms == []


def test_a_client_secret_needs_no_person(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path, shown: list[DeviceCodeData]
) -> None:
    handler = make(login_client_secret=SECRET)
    bearer = handler.acquire_access()
    assert kept(folder) == {"access.token": bearer.removeprefix("Bearer ")}
    assert [form["grant_type"] for form in provider.forms] == ["client_credentials"]
    assert shown == []


def test_a_token_is_used_to_its_end_while_the_provider_is_away(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, clock: HandClock, shown: list[DeviceCodeData]
) -> None:
    keep(folder, provider.session())
    first = handler.acquire_access()
    provider.failing = 503, "starting"
    clock.time += provider.lifetime - 1
    assert handler.acquire_access() == first
    assert shown == []
    clock.time += 1
    with pytest.raises(ProviderUnreachable, match=r"503: starting.*ask again"):
        handler.acquire_access()


def test_a_session_renewed_by_a_program_that_takes_no_lock_is_taken_over(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    """Between our reading the refresh token and the provider's looking at it, the Jobbergate CLI used it up."""
    first = provider.session()
    keep(folder, first)
    handler = make(may_login=False)
    clock.time += provider.lifetime
    renewed: list[dict[str, str]] = []

    def overtake(form: Mapping[str, str]) -> None:
        if not renewed:
            renewed.append(provider._refresh({"refresh_token": form["refresh_token"]})[1])  # type: ignore[arg-type]
            keep(folder, renewed[0])

    provider.before = overtake
    handler.refresh_tokens()
    assert len(provider.forms) == 1
    assert handler.acquire_access() == f"Bearer {renewed[0]['access_token']}"
    assert kept(folder)["refresh.token"] == renewed[0]["refresh_token"]


# One at a time


def test_many_threads_renew_once(provider: OidcProvider, folder: Path) -> None:
    waiting: set[int] = set()
    all_wait = threading.Event()
    count = 8

    class Watched(SystemClock):
        def wait(self, seconds: float) -> None:
            waiting.add(threading.get_ident())
            if len(waiting) == count - 1:
                all_wait.set()
            super().wait(seconds)

    clock = Watched()
    provider.now = clock.now
    keep(folder, provider.session() | {"access_token": provider.token(-1)})
    provider.before = lambda _: all_wait.wait(PATIENCE)
    handler = JobbergateAuthHandler(folder, provider.domain, clock=clock)
    with ThreadPoolExecutor(count) as threads:
        bearers = list(threads.map(lambda _: handler.acquire_access(), range(count)))
    assert len(set(bearers)) == 1
    assert len(provider.forms) == 1


async def test_many_coroutines_renew_once(handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path) -> None:
    keep(folder, provider.session() | {"access_token": provider.token(-1)})
    bearers = await asyncio.gather(*(handler.aacquire_access() for _ in range(50)))
    assert len(set(bearers)) == 1
    assert len(provider.forms) == 1


async def test_who_waited_for_a_renewal_gets_its_error(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider
) -> None:
    handler = make(login_client_secret=SECRET, may_login=False)
    provider.failing = 500, "out of order"
    results = await asyncio.gather(*(handler.aacquire_access() for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {ProviderUnreachable}
    assert len(provider.forms) == 1
    provider.failing = None
    assert (await handler.aacquire_access()).startswith("Bearer ")


def test_another_processs_renewal_is_waited_for_and_taken(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    session = provider.session()
    keep(folder, session | {"access_token": provider.token(-1)})
    other = subprocess.Popen(
        ["flock", str(folder / "tokens.lock"), "sh", "-c", "echo held; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == "held\n"

        def renew() -> None:
            assert provider.forms == []
            keep(folder, session)
            other.communicate()

        clock.on_wait = renew
        assert handler.acquire_access() == f"Bearer {session['access_token']}"
    assert provider.forms == []


def test_another_process_that_hangs_is_not_waited_for_without_end(
    make: Callable[..., JobbergateAuthHandler], folder: Path, provider: OidcProvider
) -> None:
    keep(folder, provider.session() | {"access_token": provider.token(-1)})
    command = ["flock", str(folder / "tokens.lock"), "sh", "-c", "echo held; cat"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AuthenticationError, match=r"tokens\.lock: another process"):
            make(may_login=False).acquire_access()
        other.communicate()
    assert provider.forms == []


async def test_a_cancelled_renewal_holds_nobody_up(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path
) -> None:
    provider.rotates = False
    keep(folder, provider.session() | {"access_token": provider.token(-1)})
    asked, answer = threading.Event(), threading.Event()

    def hold(_: Mapping[str, str]) -> None:
        asked.set()
        answer.wait(PATIENCE)

    provider.before = hold
    renewing = asyncio.create_task(handler.aacquire_access())
    assert await asyncio.to_thread(asked.wait, PATIENCE)
    # Blocking the loop would hold its own renewal up.
    with pytest.raises(AuthenticationError, match="begins with `a`"):
        handler.acquire_access()
    waiting = asyncio.create_task(handler.aacquire_access())
    renewing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await renewing
    answer.set()
    assert (await waiting).startswith("Bearer ")


# Logging in by device


def test_a_person_is_told_where_to_log_in(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    """And PKCE holds: this provider gives no tokens without it."""
    url = f"{provider.domain}/device?user_code=LMVJ-XOLG"
    handler = JobbergateAuthHandler(**_defaults(make()))
    assert handler.acquire_access().startswith("Bearer ")
    assert capsys.readouterr() == ("", f"Login Here: {url}\n")


def _defaults(handler: JobbergateAuthHandler) -> dict[str, Any]:
    return {name: getattr(handler, name) for name in ("cache_directory", "login_domain", "login_client_id", "clock")}


def test_a_provider_without_a_complete_address_gets_the_code_typed(
    handler: JobbergateAuthHandler, provider: OidcProvider, shown: list[DeviceCodeData]
) -> None:
    provider.device |= {"verification_uri_complete": ""}
    handler.login()
    assert shown[0].invitation == f"Login Here: {provider.domain}/device with the code LMVJ-XOLG"


def test_the_provider_says_how_often_it_is_asked(
    handler: JobbergateAuthHandler, provider: OidcProvider, clock: HandClock
) -> None:
    provider.device_answers = ["authorization_pending", "slow_down", "authorization_pending"]
    handler.login()
    assert clock.waits == [5, 5, 10, 10]


@pytest.mark.parametrize(("says", "may", "bound"), [(60, 900, 60), (1e9, 30, 30)])
def test_the_wait_for_a_person_is_bounded(
    make: Callable[..., JobbergateAuthHandler],
    provider: OidcProvider,
    clock: HandClock,
    says: float,
    may: float,
    bound: float,
) -> None:
    provider.device = {"expires_in": says, "interval": 7}
    provider.device_answers = ["authorization_pending"] * 100
    with pytest.raises(AuthenticationError, match=r"not completed in time.*log in again"):
        make(login_seconds=may).login()
    assert clock.time == START + bound


@pytest.mark.parametrize(
    ("word", "said"), [("access_denied", "declined"), ("expired_token", "in time"), ("invalid_grant", "invalid_grant")]
)
def test_a_login_that_the_provider_ends_is_not_waited_for(
    handler: JobbergateAuthHandler, provider: OidcProvider, clock: HandClock, word: str, said: str
) -> None:
    provider.device_answers = [word]
    with pytest.raises(AuthenticationError, match=f"{said}.*log in again"):
        handler.login()
    assert clock.waits == [5]


def test_a_login_ends_the_session_before_it(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, clock: HandClock
) -> None:
    """Otherwise the next renewal would be the one of whoever was logged in before."""
    keep(folder, provider.session())
    handler.acquire_access()
    provider.sessions = False
    handler.login()
    assert list(kept(folder)) == ["access.token"]
    with pytest.raises(AuthenticationError, match="there is no refresh token"):
        handler.refresh_tokens()


def test_a_login_goes_on_when_the_provider_was_away(
    handler: JobbergateAuthHandler, provider: OidcProvider, clock: HandClock
) -> None:
    def once() -> None:
        provider.failing = (502, "bad gateway") if len(clock.waits) == 1 else None

    clock.on_wait = once
    handler.login()
    assert clock.waits == [5, 5]


def test_a_service_never_waits_for_a_person(
    make: Callable[..., JobbergateAuthHandler], shown: list[DeviceCodeData]
) -> None:
    with pytest.raises(AuthenticationError, match="set the client's secret"):
        make(may_login=False).acquire_access()
    assert shown == []


async def test_an_event_loop_logs_in_and_out(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, shown: list[DeviceCodeData]
) -> None:
    await handler.alogin()
    await handler.arefresh_tokens()
    assert provider.given == {"device_code": 1, "refresh_token": 1}
    assert len(shown) == 1
    await handler.alogout()
    assert kept(folder) == {}


async def test_an_event_loop_uses_the_client_secret(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider
) -> None:
    await make(login_client_secret=SECRET).aget_access_from_secret()
    assert provider.given == {"client_credentials": 1}


# Requests


async def ask(loop: bool, handler: JobbergateAuthHandler, url: str, **options: Any) -> int:
    if loop:
        async with httpx.AsyncClient() as client:
            return (await client.post(url, auth=handler, **options)).status_code
    return await asyncio.to_thread(lambda: httpx.post(url, auth=handler, **options).status_code)


@pytest.mark.parametrize("loop", [False, True])
async def test_httpx_sends_the_token(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, loop: bool
) -> None:
    session = provider.session()
    keep(folder, session)
    with answering() as (url, posts):
        assert await ask(loop, handler, url) == 200
    assert posts[0].headers["Authorization"] == f"Bearer {session['access_token']}"


def test_requests_sends_the_token(handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path) -> None:
    requests = pytest.importorskip("requests")
    session = provider.session()
    keep(folder, session)
    with answering() as (url, posts):
        assert requests.post(url, auth=handler).ok
    assert posts[0].headers["Authorization"] == f"Bearer {session['access_token']}"


@pytest.mark.parametrize("loop", [False, True])
async def test_a_refused_token_is_renewed_and_the_request_sent_again(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, loop: bool
) -> None:
    session = provider.session()
    keep(folder, session)
    with answering(status=[401, 200]) as (url, posts):
        assert await ask(loop, handler, url, json={"name": "a"}) == 200
    assert [post.body for post in posts] == [b'{"name":"a"}'] * 2
    sent = [post.headers["Authorization"] for post in posts]
    assert sent == [f"Bearer {session['access_token']}", f"Bearer {kept(folder)['access.token']}"]
    assert sent[0] != sent[1]


@pytest.mark.parametrize("loop", [False, True])
async def test_an_api_that_refuses_every_token_does_not_make_the_provider_busy(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, loop: bool, shown: list[DeviceCodeData]
) -> None:
    keep(folder, provider.session())
    with answering(status=401) as (url, posts):
        assert [await ask(loop, handler, url) for _ in range(3)] == [401, 401, 401]
    assert provider.given["refresh_token"] == 1
    assert len(posts) == 4
    assert shown == []


def test_a_refused_token_makes_nobody_log_in(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path, shown: list[DeviceCodeData]
) -> None:
    keep(folder, {"access_token": provider.token()})
    with answering(status=401) as (url, posts):
        assert httpx.post(url, auth=handler).status_code == 401
    assert len(posts) == 1
    assert shown == []


async def test_a_refused_token_is_renewed_once_for_many_requests(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path
) -> None:
    session = provider.session()
    keep(folder, session)
    refused: list[httpx.Request] = []
    all_refused = asyncio.Event()

    async def api(request: httpx.Request) -> httpx.Response:
        if request.headers["Authorization"] != f"Bearer {session['access_token']}":
            return httpx.Response(200)
        refused.append(request)
        if len(refused) == 10:
            all_refused.set()
        await all_refused.wait()
        return httpx.Response(401)

    async with httpx.AsyncClient(transport=httpx.MockTransport(api), auth=handler) as client:
        answers = await asyncio.gather(*(client.get("http://api.example.org") for _ in range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert provider.given["refresh_token"] == 1


async def test_a_body_that_is_gone_is_not_sent_again(
    handler: JobbergateAuthHandler, provider: OidcProvider, folder: Path
) -> None:
    keep(folder, provider.session())
    with answering(status=[401, 200]) as (url, posts):
        code = await ask(False, handler, url, content=iter([b"part"]), headers={"Content-Length": "4"})
    assert code == 401
    assert [post.body for post in posts] == [b"part"]


# What is told


def test_whose_the_token_is(handler: JobbergateAuthHandler, provider: OidcProvider) -> None:
    provider.claims["organization"] = {"site": {"id": "17"}}
    assert handler.get_identity_data() == IdentityData("ada@example.org", "cli", "17")
    del provider.claims["email"]
    handler.refresh_tokens()
    with pytest.raises(TokenError, match="claim email"):
        handler.get_identity_data()


@pytest.mark.parametrize(
    ("claim", "known"),
    [
        ({"site": {"id": "17"}}, "17"),
        ({"site": {}}, "site"),
        # Keycloak's own way, and with a mapper for one value.
        (["site"], "site"),
        ("site", "site"),
        ([], None),
    ],
)
def test_for_which_organization_a_token_is(
    handler: JobbergateAuthHandler, provider: OidcProvider, claim: object, known: str | None
) -> None:
    provider.claims["organization"] = claim
    assert handler.get_identity_data().organization_id == known


@pytest.mark.parametrize("claim", [{"one": {}, "other": {}}, ["one", "other"]])
def test_a_token_for_several_organizations_is_nobodys(
    handler: JobbergateAuthHandler, provider: OidcProvider, claim: object
) -> None:
    provider.claims["organization"] = claim
    with pytest.raises(TokenError, match="several organizations"):
        handler.get_identity_data()


def test_a_token_without_an_expiry_is_an_error(tmp_path: Path, provider: OidcProvider) -> None:
    token = Token(tmp_path, TokenType.ACCESS, provider.token(exp=None))
    with pytest.raises(TokenError, match="exp"):
        token.is_valid()


def test_a_clock_that_is_wrong_is_named(handler: JobbergateAuthHandler, provider: OidcProvider) -> None:
    provider.lifetime = -1
    with pytest.raises(TokenError, match="clock"):
        handler.login()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>", "none of an OIDC provider's: JSON"),
        (200, "{}", "access_token is missing"),
        (404, "<html>not here</html>", "404: <html>not here</html>.*realm"),
        (301, "", "301: nothing.*realm"),
    ],
)
def test_what_is_no_provider_is_named(
    make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, status: int, body: str, said: str
) -> None:
    provider.failing = status, body
    with pytest.raises(AuthenticationError, match=said) as caught:
        make(login_client_secret=SECRET).get_access_from_secret()
    assert provider.domain in str(caught.value)
    assert not isinstance(caught.value, ProviderUnreachable)


def test_a_provider_that_is_not_there_is_unreachable(make: Callable[..., JobbergateAuthHandler]) -> None:
    domain = f"http://127.0.0.1:{free_ports(1)[0]}/realms/none"
    handler = make(login_domain=domain, login_client_secret=SECRET)
    with pytest.raises(ProviderUnreachable, match="does not answer"):
        handler.acquire_access()


@pytest.mark.parametrize("domain", ["auth.example.org/realms/a", "", "https://", "http://a:b", "ftp://a"])
def test_a_domain_that_is_no_url_is_refused(tmp_path: Path, domain: str) -> None:
    with pytest.raises(AuthenticationError, match=r"https://auth\.example\.org/realms/example"):
        JobbergateAuthHandler(tmp_path, domain)


@pytest.mark.parametrize("scheme", ["https", "ftp"])
def test_a_password_in_the_domain_is_refused_and_not_shown(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(AuthenticationError, match="names a user") as refused:
        JobbergateAuthHandler(tmp_path, f"{scheme}://me:pass-word@auth.example.org/realms/a")
    assert "pass-word" not in str(refused.value)


def test_a_file_of_cas_that_is_not_there_is_named(make: Callable[..., JobbergateAuthHandler]) -> None:
    with pytest.raises(AuthenticationError, match=r"/none\.pem: .*PEM file"):
        make(verify="/none.pem")


def test_all_reasons_are_told(make: Callable[..., JobbergateAuthHandler], provider: OidcProvider, folder: Path) -> None:
    keep(folder, {"refresh_token": "used"})
    with pytest.raises(AuthenticationError) as caught:
        make(login_client_secret="wrong", may_login=False).acquire_access()
    assert "the session cannot be renewed: the OIDC provider answers 400: invalid_grant" in str(caught.value)
    assert "the client secret gives no token: the OIDC provider answers 401: unauthorized_client" in str(caught.value)


def test_no_token_and_no_secret_is_ever_shown(
    make: Callable[..., JobbergateAuthHandler],
    provider: OidcProvider,
    folder: Path,
    shown: list[DeviceCodeData],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hidden: set[str] = set()
    names = {"refresh_token", "client_secret", "device_code", "code_verifier"}
    provider.before = lambda form: hidden.update(value for name, value in form.items() if name in names)
    texts: list[str] = []

    def fail(work: Callable[[], object], handler: JobbergateAuthHandler) -> None:
        with pytest.raises(AuthenticationError) as caught:
            work()
        error: BaseException | None = caught.value
        while error is not None:
            texts.extend([str(error), repr(error), str(vars(error)), str(getattr(error, "request", ""))])
            texts.extend(traceback.format_exception(error))
            error = error.__cause__ or error.__context__
        texts.append(repr(handler))

    person = make()
    provider.device_answers = ["authorization_pending"]
    person.login()
    person.refresh_tokens()
    hidden.update(kept(folder).values())
    texts += [repr(shown), str(shown[0].model_dump()), repr(person._access), repr(person._refresh_token)]
    # The provider says these back.
    (folder / "refresh.token").write_text("an-opaque-refresh-token")
    fail(person.refresh_tokens, person)
    client = make(login_client_secret="a-wrong-secret")
    fail(client.get_access_from_secret, client)
    provider.failing = 200, '{"access_token": ["eyJ.a-malformed-answer"]}'
    hidden.add("a-malformed-answer")
    fail(client.get_access_from_secret, client)
    foreign = provider.token()
    hidden.add(foreign)
    provider.failing = 400, f'{{"error": "invalid_client", "error_description": "this is for {foreign}"}}'
    fail(client.get_access_from_secret, client)
    away = make(login_domain=f"http://127.0.0.1:{free_ports(1)[0]}", login_client_secret="a-wrong-secret")
    fail(away.get_access_from_secret, away)
    texts.append(str(vars(client)))

    assert {"an-opaque-refresh-token", "a-wrong-secret"} < hidden
    assert len(hidden) > 6
    # Also a part of a token is too much.
    hidden.update(value.split(".")[1][:40] for value in tuple(hidden) if value.count(".") == 2)
    told = "\n".join([*texts, caplog.text])
    assert [value for value in hidden if value in told] == []


def test_importing_the_package_imports_nothing_slow() -> None:
    program = (
        "import sys, jobbergate_flows.jobbergate; print([n for n in ('httpx', 'jwt', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
