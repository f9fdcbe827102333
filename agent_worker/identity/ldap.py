"""The mapper that asks an LDAP directory. Needs the extra `jobbergate-flows[worker]`."""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import ldap3
from cachetools import TTLCache
from ldap3.core.exceptions import (
    LDAPException,
    LDAPInvalidCredentialsResult,
    LDAPInvalidFilterError,
    LDAPSizeLimitExceededResult,
)
from ldap3.utils.conv import escape_filter_chars

from agent_worker.identity.mapping import MapperBroken, MapperUnavailable

_MAX_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class LdapSettings:
    """How the directory is asked.

    Args:
        url: `ldaps://HOST[:PORT]`, `ldapi:///SOCKET`, or `ldap://HOST[:PORT]`, this with `start_tls` or
            on this host.
        base: Where the search begins.
        filter: An LDAP filter with `{identity}` where the identity goes, escaped: `(mail={identity})`.
        attribute: The attribute that holds the account's name.
        bind_dn, password_file: Whom to bind as; without them, anonymously.
        password: Instead of a file.
        start_tls: Whether to turn an `ldap://` connection into an encrypted one.
        ca_file: The certificates of who may vouch for the server; otherwise the system's.
        timeout: Seconds for connecting, and for each answer; at least one.
        expiry: Seconds for which an answer is remembered.
    """

    url: str
    base: str
    filter: str = "(mail={identity})"
    attribute: str = "uid"
    bind_dn: str | None = None
    password_file: Path | None = None
    start_tls: bool = False
    ca_file: Path | None = None
    timeout: int = 5
    expiry: float = 300.0
    password: str | None = field(default=None, repr=False)


class LdapMapper:
    """Asks the directory, and remembers who it found until the expiry; who is not known is asked for again each time.

    An account that is remembered serves while the directory is down. It also lives that long after its removal.

    Args:
        settings: How to ask.
        clock: Seconds, for the expiry.

    Raises:
        MapperBroken: The settings cannot work, or would send identities and passwords in the clear.
    """

    def __init__(self, settings: LdapSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.name = f"ldap {settings.url}"
        self._known: TTLCache[str, str] = TTLCache(_MAX_CACHED, settings.expiry, timer=clock)
        self._lock = Lock()
        _check(settings)

    def account(self, identity: str) -> str | None:
        """As `Mapper.account`.

        Raises:
            MapperUnavailable: The directory is down, and the identity is not remembered.
            MapperBroken: It refuses the password, or finds several people or several accounts.
        """
        with self._lock:
            known = self._known.get(identity)
        if known is not None:
            return known
        found = self._ask(identity)
        if found is not None:
            with self._lock:
                self._known[identity] = found
        return found

    def _ask(self, identity: str) -> str | None:
        settings = self.settings
        try:
            with self._connection() as connection:
                connection.search(
                    settings.base,
                    settings.filter.replace("{identity}", escape_filter_chars(identity)),
                    attributes=[settings.attribute],
                    size_limit=2,
                    time_limit=settings.timeout,
                )
                entries = [entry for entry in connection.response or () if entry["type"] == "searchResEntry"]
        except LDAPSizeLimitExceededResult as error:
            raise self._several(identity) from error
        except LDAPInvalidFilterError as error:
            raise MapperBroken(f"the filter is none: {settings.filter}", where=self.name) from error
        except LDAPInvalidCredentialsResult as error:
            raise MapperBroken(
                "the directory refuses the worker's password", where=self.name, hint="renew the password file"
            ) from error
        except (LDAPException, OSError) as error:
            raise MapperUnavailable(
                f"the directory does not answer: {error}", where=self.name, hint="the run waits until it does"
            ) from error
        return self._one(identity, entries)

    def _connection(self) -> ldap3.Connection:
        settings = self.settings
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=settings.ca_file and str(settings.ca_file))
        server = ldap3.Server(settings.url, tls=tls, connect_timeout=settings.timeout, get_info=ldap3.NONE)
        return ldap3.Connection(
            server,
            user=settings.bind_dn,
            password=settings.password or _password(settings.password_file),
            authentication=ldap3.SIMPLE if settings.bind_dn else ldap3.ANONYMOUS,
            auto_bind=ldap3.AUTO_BIND_TLS_BEFORE_BIND if settings.start_tls else ldap3.AUTO_BIND_NO_TLS,
            receive_timeout=settings.timeout,
            read_only=True,
            raise_exceptions=True,
            auto_referrals=False,
        )

    def _one(self, identity: str, entries: list[Any]) -> str | None:
        if not entries:
            return None
        values = entries[0]["attributes"].get(self.settings.attribute) or []
        names = [values] if isinstance(values, str) else list(values)
        if len(entries) > 1 or len(names) > 1:
            raise self._several(identity)
        if not names or not isinstance(names[0], str) or not names[0]:
            return None
        return names[0]

    def _several(self, identity: str) -> MapperBroken:
        return MapperBroken(
            f"the directory has several accounts for {identity!a}",
            where=self.name,
            hint="narrow the search's base or filter, so that one person has one account",
        )


def _check(settings: LdapSettings) -> None:
    where = settings.url
    if settings.timeout < 1:
        raise MapperBroken("the timeout is shorter than a second", where=where, hint="give whole seconds")
    if settings.filter.count("{identity}") != 1:
        raise MapperBroken("the filter does not say where the identity goes", where=where, hint="(mail={identity})")
    if (settings.bind_dn is None) != (settings.password_file is None and not settings.password):
        raise MapperBroken("who to bind as and the password's file go together", where=where)
    address = urlsplit(settings.url)
    if address.scheme not in ("ldap", "ldaps", "ldapi"):
        raise MapperBroken("it is no address of a directory", where=where, hint="ldaps://ldap.example.org")
    if address.scheme == "ldap" and not settings.start_tls and not _is_this_host(address.hostname or ""):
        raise MapperBroken(
            "anybody on the way could answer in the directory's place", where=where, hint="use ldaps://, or start_tls"
        )
    _password(settings.password_file)


def _is_this_host(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o027:
                raise MapperBroken(
                    "others may read or write the password", where=str(file), hint=f"chmod 0640 {file}, or 0600"
                )
            password = opened.read().decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MapperBroken(f"the password cannot be read: {error}", where=str(file)) from error
    # A bind with a name and without a password is an anonymous one that looks as if it had worked.
    if not password:
        raise MapperBroken("the password is empty", where=str(file))
    return password
