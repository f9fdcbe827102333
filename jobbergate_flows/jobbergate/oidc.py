"""The grants that an OIDC provider with Keycloak's paths gives Jobbergate: device, refresh, client credentials.

Each is a generator of steps, see `steps`. No error holds a token or a secret, also where the provider says one back.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from jobbergate_flows.jobbergate.errors import AuthenticationError, ProviderUnreachable
from jobbergate_flows.jobbergate.steps import Clock, Steps, Wait

TOKEN_PATH = "/protocol/openid-connect/token"
DEVICE_PATH = "/protocol/openid-connect/auth/device"

M = TypeVar("M", bound=BaseModel)

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_SECRETS = ("client_secret", "refresh_token", "device_code", "code_verifier")
_JWT = re.compile(r"eyJ[\w-]+(\.[\w-]*)*")
_MAX_WORDS = 300
# RFC 8628, 3.5: what a client waits longer after each `slow_down`.
_SLOWER_SECONDS = 5.0
_DOMAIN_HINT = "the login domain is the realm's URL, such as https://auth.example.org/realms/example"


class DeviceCodeData(BaseModel):
    """What a provider says when a login by device begins (RFC 8628, 3.2)."""

    model_config = ConfigDict(hide_input_in_errors=True, frozen=True)

    device_code: SecretStr
    user_code: str = ""
    verification_uri: str = ""
    verification_uri_complete: str = ""
    expires_in: float = Field(gt=0, description="Seconds in which the login must be completed.")
    interval: float = Field(default=5.0, ge=0, description="Seconds between two questions whether it is.")

    @property
    def invitation(self) -> str:
        """One line that tells a person where to log in."""
        if self.verification_uri_complete:
            return f"Login Here: {self.verification_uri_complete}"
        return f"Login Here: {self.verification_uri} with the code {self.user_code}"


class TokenInformation(BaseModel):
    """The tokens that a provider gave."""

    model_config = ConfigDict(hide_input_in_errors=True, frozen=True)

    access_token: SecretStr = Field(min_length=1)
    refresh_token: SecretStr | None = None


@dataclass(frozen=True)
class Provider:
    """An OIDC provider, as one of its clients.

    Args:
        domain: The realm's URL.
        timeout: Seconds without a byte after which it counts as unreachable.

    Raises:
        AuthenticationError: The domain is no URL, or names a user.
    """

    domain: str
    client_id: str
    client_secret: SecretStr | None = field(default=None, repr=False)
    timeout: float = 15.0

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.domain)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.userinfo:
            raise AuthenticationError(
                "the login domain names a user", where=str(url.copy_with(userinfo=b"")), hint=_DOMAIN_HINT
            )
        if url.scheme not in ("http", "https") or not url.host:
            raise AuthenticationError("the login domain is no URL", where=self.domain, hint=_DOMAIN_HINT)
        object.__setattr__(self, "domain", self.domain.rstrip("/"))

    def refresh(self, refresh_token: str) -> Steps[TokenInformation]:
        """New tokens for a refresh token, which most providers take only once.

        Raises:
            AuthenticationError: The provider refuses it; ProviderUnreachable when it does not answer.
        """
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return (yield from self._tokens(form, "the session cannot be renewed", "log in again"))

    def client_credentials(self) -> Steps[TokenInformation]:
        """Tokens for the client itself.

        Raises:
            AuthenticationError: There is no secret, or the provider refuses it.
        """
        if self.client_secret is None:
            raise AuthenticationError("no client secret is set", hint="set it, or log in as a person")
        return (
            yield from self._tokens(
                {"grant_type": "client_credentials"},
                "the client secret gives no token",
                "see the client's id and secret, and whether the provider gives it a service account",
            )
        )

    def device(self, show: Callable[[DeviceCodeData], None], clock: Clock, seconds: float) -> Steps[TokenInformation]:
        """Tokens for a person who logs in with a browser, with PKCE (RFC 7636, S256).

        Args:
            show: Told once where the person logs in.
            seconds: How long the person has at most; less where the provider says so.

        Raises:
            AuthenticationError: The person declined, or was too late, or the provider refuses the client.
        """
        verifier = secrets.token_urlsafe(96)[:128]
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        form = self._form({"code_challenge": challenge, "code_challenge_method": "S256"})
        answer = yield from self._ask(DEVICE_PATH, form)
        if not answer.is_success:
            raise self._refused(
                answer,
                "no login can be begun",
                form,
                "see the client's id, and whether the provider lets it log in by device",
            )
        device = self._read(DeviceCodeData, answer)
        until = clock.now() + min(device.expires_in, seconds)
        show(device)
        form = self._form(
            {
                "grant_type": _DEVICE_GRANT,
                "device_code": device.device_code.get_secret_value(),
                "code_verifier": verifier,
            }
        )
        # A provider that says 0 is not asked without a pause.
        interval = max(device.interval, 1.0)
        trouble = ""
        while (left := until - clock.now()) > 0:
            yield Wait(min(interval, left))
            try:
                answer = yield from self._ask(TOKEN_PATH, form)
            except ProviderUnreachable as error:
                trouble = f"; at last {error.message}"
                continue
            if answer.is_success:
                return self._read(TokenInformation, answer)
            word = _said(answer).get("error")
            trouble = f"; at last the provider answered {answer.status_code}" if answer.status_code >= 500 else ""
            if word == "slow_down":
                interval += _SLOWER_SECONDS
            elif word == "access_denied":
                raise AuthenticationError("the login was declined", where=self.domain, hint="log in again")
            elif word == "expired_token":
                break
            elif word != "authorization_pending" and not trouble:
                raise self._refused(answer, "the login failed", form, "log in again")
        raise AuthenticationError(
            f"the login was not completed in time{trouble}",
            where=self.domain,
            hint="log in again, and open the address that is shown at once",
        )

    def _tokens(self, form: Mapping[str, str], failure: str, hint: str) -> Steps[TokenInformation]:
        whole = self._form(form)
        answer = yield from self._ask(TOKEN_PATH, whole)
        if not answer.is_success:
            raise self._refused(answer, failure, whole, hint)
        return self._read(TokenInformation, answer)

    def _form(self, form: Mapping[str, str]) -> dict[str, str]:
        whole = {"client_id": self.client_id, **form}
        if self.client_secret is not None:
            whole["client_secret"] = self.client_secret.get_secret_value()
        return whole

    def _ask(self, path: str, form: Mapping[str, str]) -> Steps[httpx.Response]:
        request = httpx.Request(
            "POST",
            self.domain + path,
            data=form,
            headers={"Accept": "application/json"},
            extensions={"timeout": httpx.Timeout(self.timeout).as_dict()},
        )
        try:
            answer = yield request
        except httpx.RequestError as error:
            # The error itself holds the request, and that the secrets.
            reason = str(error) or type(error).__name__
        else:
            assert answer is not None
            return answer
        raise ProviderUnreachable(
            f"the OIDC provider does not answer: {reason}",
            where=self.domain,
            hint="see whether it runs, and whether this host reaches it",
        )

    def _refused(self, answer: httpx.Response, failure: str, form: Mapping[str, str], hint: str) -> AuthenticationError:
        words = _words(answer, [form[name] for name in _SECRETS if name in form])
        message = f"{failure}: the OIDC provider answers {answer.status_code}: {words}"
        if answer.status_code >= 500 or answer.status_code == 429:
            return ProviderUnreachable(message, where=self.domain, hint="ask again later")
        if answer.status_code in (301, 302, 303, 307, 308, 404, 405):
            hint = _DOMAIN_HINT
        return AuthenticationError(message, where=self.domain, hint=hint)

    def _read(self, model: type[M], answer: httpx.Response) -> M:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            what = ", ".join(sorted({".".join(map(str, one["loc"])) or "JSON" for one in error.errors()}))
        raise AuthenticationError(
            f"the answer is none of an OIDC provider's: {what} is missing or malformed",
            where=self.domain,
            hint=_DOMAIN_HINT,
        )


def _said(answer: httpx.Response) -> dict[str, Any]:
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _words(answer: httpx.Response, hidden: list[str]) -> str:
    """What a provider says of an error, without what it must not say."""
    said = _said(answer)
    parts = [said.get("error"), said.get("error_description")]
    words = ": ".join(str(part) for part in parts if part) or answer.text
    for secret in hidden:
        words = words.replace(secret, "***") if secret else words
    return " ".join(_JWT.sub("***", words).split())[:_MAX_WORDS] or "nothing"
