"""A URL of a database that may hold a user and a password, which no message may show. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class Address:
    """`url` has neither user nor password, and no slash at its end; they are None where it had none."""

    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def address(url: str) -> Address:
    """A URL, and the user and password that stood in it: `http://user:password@host`, percent-encoded or not."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    # All that is before the last @: a password may have a slash that should have been encoded.
    given, at, place = rest.rpartition("@")
    username, colon, password = given.partition(":")
    return Address(
        f"{scheme}{separator}{place}".rstrip("/"),
        unquote(username) if at else None,
        unquote(password) if colon else None,
    )
