"""A small OIDC provider with Keycloak's paths, over real HTTP: tokens by client secret, refresh and device login.

Refresh tokens rotate: each is taken once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster.http_server import Handler, serving

REALM = "/realms/tests"
SECRET = "the-secret-of-the-client"
KEY_ID = "tests"
_TOKEN = f"{REALM}/protocol/openid-connect/token"
_DEVICE = f"{REALM}/protocol/openid-connect/auth/device"
_CERTS = f"{REALM}/protocol/openid-connect/certs"

Answer = tuple[int, Mapping[str, Any]]


@cache
def signing_key() -> rsa.RSAPrivateKey:
    """One for all tests: making it takes long."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class DeviceLogin:
    """One login by device, as the provider has it."""

    challenge: str
    asked: int = 0


@dataclass
class OidcProvider:
    """What the provider is told to do, and what it was asked.

    Attributes:
        domain: The realm's URL.
        now: Its clock, in seconds since 1970.
        lifetime: Of an access token, in seconds; a refresh token has ten times that.
        claims: Of access tokens, besides those about time.
        clients: Those of the clients, by their id, that get other claims; `azp` is their id.
        rotates: Whether a refresh token is taken only once, and comes with a new one.
        sessions: Whether a person's login gives a refresh token.
        device_answers: What it says to a device, in turn, before the person has logged in; OAuth's words for errors.
        device: What it says of a login besides the code.
        failing: A status and a body, instead of all other answers.
        before: Called with each form before it is answered.
        forms: What it was asked, in order; the grants that it gave are in `given`.
    """

    domain: str = ""
    now: Callable[[], float] = time.time
    lifetime: float = 300
    claims: dict[str, Any] = field(
        default_factory=lambda: {"sub": "1", "azp": "cli", "email": "ada@example.org", "permissions": []}
    )
    clients: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    rotates: bool = True
    sessions: bool = True
    device_answers: list[str] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=lambda: {"expires_in": 600, "interval": 5})
    failing: tuple[int, str] | None = None
    before: Callable[[Mapping[str, str]], object] = lambda _: None
    forms: list[dict[str, str]] = field(default_factory=list)
    given: Counter[str] = field(default_factory=Counter)
    _refresh_tokens: dict[str, str] = field(default_factory=dict)
    _logins: dict[str, DeviceLogin] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def token(self, lifetime: float | None = None, **claims: Any) -> str:
        """A signed token; a lifetime below 0 makes one that has expired."""
        now = int(self.now())
        expiry = now + int(self.lifetime if lifetime is None else lifetime)
        content = {"iat": now, "exp": expiry, "jti": secrets.token_hex(4), "iss": self.domain, **self.claims, **claims}
        return jwt.encode(
            {name: value for name, value in content.items() if value is not None},
            signing_key(),
            algorithm="RS256",
            headers={"kid": KEY_ID},
        )

    def access_token(self, client: str) -> str:
        """A signed token as this client gets it."""
        return self.token(**({"azp": client, **self.clients[client]} if client in self.clients else {}))

    def session(self, client: str = "") -> dict[str, str]:
        """An access token and a refresh token that it takes."""
        refresh = self.token(self.lifetime * 10, typ="Refresh")
        self._refresh_tokens[refresh] = client
        return {"access_token": self.access_token(client), "refresh_token": refresh}

    def answer(self, path: str, form: dict[str, str]) -> Answer:
        """A status, and what it says to a form; under an empty name text that is no JSON."""
        self.before(form)
        with self._lock:
            self.forms.append(form)
            if self.failing is not None:
                return self.failing[0], {"": self.failing[1]}
            if path == _DEVICE:
                return self._begin(form)
            if path != _TOKEN:
                return 404, {"error": "not_found"}
            grant = form.get("grant_type", "").rpartition(":")[2]
            status, said = {
                "refresh_token": self._refresh,
                "client_credentials": self._client,
                "device_code": self._device,
            }[grant](form)
            if status == 200:
                self.given[grant] += 1
            return status, said

    def _refresh(self, form: dict[str, str]) -> Answer:
        used = form["refresh_token"]
        if used not in self._refresh_tokens:
            # It says the token back, as no provider should.
            return 400, {"error": "invalid_grant", "error_description": f"Token is not active: {used}"}
        if not self.rotates:
            return 200, {"access_token": self.access_token(self._refresh_tokens[used])}
        return 200, self.session(self._refresh_tokens.pop(used))

    def _client(self, form: dict[str, str]) -> Answer:
        if form.get("client_secret") != SECRET:
            said = f"Invalid client secret {form.get('client_secret')}"
            return 401, {"error": "unauthorized_client", "error_description": said}
        return 200, {"access_token": self.access_token(form["client_id"])}

    def _begin(self, form: dict[str, str]) -> Answer:
        if form.get("code_challenge_method") != "S256":
            return 400, {"error": "invalid_request", "error_description": "PKCE with S256 is required"}
        code = secrets.token_urlsafe()
        self._logins[code] = DeviceLogin(form["code_challenge"])
        page = f"{self.domain}/device"
        return 200, {
            "device_code": code,
            "user_code": "LMVJ-XOLG",
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code=LMVJ-XOLG",
            **self.device,
        }

    def _device(self, form: dict[str, str]) -> Answer:
        login = self._logins[form["device_code"]]
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != login.challenge:
            return 400, {"error": "invalid_grant", "error_description": "PKCE verification failed"}
        login.asked += 1
        if login.asked <= len(self.device_answers):
            return 400, {"error": self.device_answers[login.asked - 1]}
        del self._logins[form["device_code"]]
        client = form["client_id"]
        return 200, self.session(client) if self.sessions else {"access_token": self.access_token(client)}

    def page(self, path: str) -> Mapping[str, Any] | None:
        """What it answers to GET: where its keys are, and they."""
        if path == f"{REALM}/.well-known/openid-configuration":
            return {"issuer": self.domain, "jwks_uri": self.domain + _CERTS.removeprefix(REALM)}
        if path == _CERTS:
            key = jwt.algorithms.RSAAlgorithm.to_jwk(signing_key().public_key(), as_dict=True)
            return {"keys": [{**key, "kid": KEY_ID, "use": "sig", "alg": "RS256"}]}
        return None


@contextmanager
def running_provider(provider: OidcProvider | None = None) -> Iterator[OidcProvider]:
    """Serve one on a port of its own."""
    served = provider or OidcProvider()

    class Endpoint(Handler):
        def do_GET(self) -> None:
            page = served.page(self.path)
            self._say(404 if page is None else 200, json.dumps(page or {}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            status, said = served.answer(self.path, form)
            self._say(status, said[""] if "" in said else json.dumps(said))

        def _say(self, status: int, text: str) -> None:
            self.say(status, text.encode(), {"Content-Type": "application/json"})

    with serving(Endpoint) as url:
        served.domain = f"{url}{REALM}"
        yield served
