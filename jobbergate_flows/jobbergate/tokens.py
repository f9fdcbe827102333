"""Tokens, and the files that Jobbergate's own programs keep them in: `access.token` and `refresh.token`, a JWT each."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict, cast

import jwt

from jobbergate_flows.jobbergate.errors import TokenError

RENEWAL_SECONDS = 60.0
"""So long before its expiry a token is renewed; one that lives less than twice that, when half of its life is over."""

_LOG_IN = "log in again, for example with `jobbergate-flows jobbergate login`"


class TokenType(StrEnum):
    """Which tokens there are; the names of their files."""

    ACCESS = "access"
    REFRESH = "refresh"


class TokenData(TypedDict, total=False):
    """The claims of a token that Jobbergate uses; others may be there."""

    email: str
    azp: str
    exp: float
    iat: float
    organization: dict[str, dict[str, Any]] | list[str] | str
    permissions: list[str]


@dataclass(frozen=True)
class IdentityData:
    """Whose a token is.

    Attributes:
        client_id: The client that it was made for, its claim `azp`.
        organization_id: None where the provider knows of none.
    """

    email: str
    client_id: str
    organization_id: str | None = None


@dataclass(frozen=True)
class Token:
    """A token, and where its file is. Its signature is not looked at: that is for the API to do.

    Args:
        cache_directory: The folder of token files.
        label: Which one it is, of `TokenType`.
        content: The token itself, which no repr shows; empty when there is none.

    Attributes:
        file_path: `<cache_directory>/<label>.token`.
        data: Its claims; of a refresh token they are empty where the provider makes it opaque.

    Raises:
        TokenError: An access token that is no JWT.
    """

    cache_directory: Path
    label: str
    content: str = field(default="", repr=False)
    file_path: Path = field(init=False, hash=False, repr=False)
    data: TokenData = field(init=False, hash=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "file_path", self.cache_directory / f"{self.label}.token")
        claims = _claims(self.content)
        if claims is None and self.label == TokenType.ACCESS:
            raise TokenError("the access token is no JWT", where=str(self.file_path), hint=_LOG_IN)
        object.__setattr__(self, "data", cast(TokenData, claims or {}))

    @property
    def bearer_token(self) -> str:
        """The token as the header `Authorization` has it."""
        return f"Bearer {self.content}"

    @property
    def expires_at(self) -> float:
        """When it expires, in seconds since 1970.

        Raises:
            TokenError: It does not say.
        """
        at = self.data.get("exp")
        if not isinstance(at, int | float) or isinstance(at, bool):
            raise TokenError(
                f"the {self.label} token does not say when it expires",
                where=str(self.file_path),
                hint="the provider must give its tokens the claim exp",
            )
        return at

    def is_expired(self, now: float | None = None) -> bool:
        """Whether it has expired at `now` (seconds since 1970; the present without it).

        Raises:
            TokenError: It does not say when it expires.
        """
        return self.expires_at <= (time.time() if now is None else now)

    def is_valid(self, now: float | None = None) -> bool:
        """Whether there is a token that has not expired.

        Raises:
            TokenError: It does not say when it expires.
        """
        return bool(self.content) and not self.is_expired(now)

    def is_due(self, now: float) -> bool:
        """Whether it should be renewed, see `RENEWAL_SECONDS`.

        Raises:
            TokenError: It does not say when it expires.
        """
        margin = RENEWAL_SECONDS
        made = self.data.get("iat")
        if isinstance(made, int | float):
            # Keycloak's own realm makes tokens that live for a minute: each request would renew such a one.
            margin = min(margin, max(self.expires_at - made, 0) / 2)
        return self.expires_at - margin <= now

    def replace(self, **changes: Any) -> Token:
        """A new token with another `content`, `label` or `cache_directory`."""
        return replace(self, **changes)

    def load_from_cache(self) -> Token:
        """A new token with the content of its file.

        Raises:
            TokenError: The file is not there, cannot be read, or holds no token.
        """
        content = read_token(self.file_path)
        if not content:
            raise TokenError(f"there is no {self.label} token", where=str(self.file_path), hint=_LOG_IN)
        return self.replace(content=content)

    def save_to_cache(self) -> None:
        """Write it to its file, which only its owner can read at any moment, and which is always whole.

        Raises:
            TokenError: The folder is not there, or the file cannot be written.
        """
        if not self.content:
            return
        temporary = self.file_path.with_name(f".{self.file_path.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(self.content.strip())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.file_path)
        except (OSError, UnicodeEncodeError) as error:
            # An encoder's error holds what it could not encode.
            reason = error.strerror if isinstance(error, OSError) else "it has characters that no token has"
        else:
            return
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise TokenError(
            f"the {self.label} token cannot be kept: {reason}",
            where=str(self.file_path),
            hint="make the folder, writable for its user",
        )

    def clear_cache(self) -> None:
        """Remove its file; none is no error.

        Raises:
            TokenError: The file cannot be removed.
        """
        try:
            self.file_path.unlink(missing_ok=True)
        except OSError as error:
            raise TokenError(
                f"the {self.label} token cannot be removed: {error.strerror}",
                where=str(self.file_path),
                hint="remove the file by hand",
            ) from error


def read_token(path: Path) -> str:
    """What is in a token's file; empty when it is not there.

    Raises:
        TokenError: It cannot be read.
    """
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        # A decoder's error holds what it could not decode.
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
    raise TokenError(f"the token cannot be read: {reason}", where=str(path), hint=f"remove the file and {_LOG_IN}")


def identity(token: Token) -> IdentityData:
    """Whose an access token is.

    Raises:
        TokenError: A claim is missing.
    """
    for claim, what in (("email", "whose it is"), ("azp", "for which client it is")):
        if not isinstance(token.data.get(claim), str):
            raise TokenError(
                f"the token does not say {what}",
                where=f"the claim {claim}",
                hint="the provider must map it into the access tokens of this client",
            )
    found = organizations(token)
    if len(found) > 1:
        raise TokenError(
            "the token is for several organizations", where="the claim organization", hint="log in with one of them"
        )
    return IdentityData(token.data["email"], token.data["azp"], next(iter(found.values()), None))


def organizations(token: Token) -> dict[str, str]:
    """The organizations that an access token is for: name -> id, or the name again where the token has no id."""
    claim = token.data.get("organization") or {}
    if isinstance(claim, dict):
        return {name: one.get("id", name) if isinstance(one, dict) else name for name, one in claim.items()}
    # Keycloak gives names alone unless it is told to add the ids.
    return {name: name for name in ([claim] if isinstance(claim, str) else claim)}


class TokenLock:
    """Held by the one process that renews the tokens of a folder. It ends with its process, however that ends.

    Jobbergate's own programs know nothing of it. Where the folder takes no locks (no such folder, a file system
    without them) everybody has it.
    """

    def __init__(self, cache_directory: Path) -> None:
        self.path = cache_directory / "tokens.lock"
        self._descriptor: int | None = None

    def claim(self) -> bool:
        """Take it; False when somebody else has it."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def release(self) -> None:
        """Give it up, or give up waiting for it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _claims(content: str) -> dict[str, Any] | None:
    """The claims of a JWT; None of what is none. No error of PyJWT's gets out: it may hold the token."""
    if not content:
        return {}
    try:
        claims: dict[str, Any] = jwt.decode(content, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError):
        return None
    return claims
