"""The LDAP mapper, on a real slapd."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent_worker.identity.facts import Creator
from agent_worker.identity.ldap import LdapMapper, LdapSettings
from agent_worker.identity.mapping import Mapped, MapperBroken, MapperUnavailable, map_creator
from tests.cluster.directory import BASE, PASSWORD, WORKER, Directory


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def settings(directory: Directory, password: Path) -> LdapSettings:
    return LdapSettings(directory.url, BASE, bind_dn=WORKER, password_file=password)


@pytest.fixture
def down(directory: Directory) -> Iterator[None]:
    directory.stop()
    yield
    directory.start()


def test_a_person_has_the_account_of_their_entry(settings: LdapSettings) -> None:
    mapper = LdapMapper(settings)
    assert mapper.account("alice@example.org") == "alice"
    signed_in = Creator("7f9f", "USER", "alice@example.org")
    assert map_creator(mapper, signed_in, by="display_value") == Mapped(
        "alice", f"ldap {settings.url}: created_by display_value alice@example.org"
    )


@pytest.mark.parametrize("identity", ["mallory@example.org", "nobody@example.org"])
def test_who_is_not_there_or_has_no_account_is_nobody(settings: LdapSettings, identity: str) -> None:
    assert LdapMapper(settings).account(identity) is None


@pytest.mark.parametrize(
    "identity", ["*", "*)(uid=*", "x)(|(mail=alice@example.org)", "alice*", "a\\2a", "alice@example.org)(uid=*", "\x00"]
)
def test_no_identity_becomes_part_of_the_filter(settings: LdapSettings, identity: str) -> None:
    assert LdapMapper(settings).account(identity) is None


def test_an_identity_may_have_the_letters_of_a_filter(settings: LdapSettings) -> None:
    assert LdapMapper(settings).account("carol(x)@example.org") == "carol"


def test_several_accounts_are_none(settings: LdapSettings) -> None:
    with pytest.raises(MapperBroken, match="several accounts"):
        LdapMapper(settings).account("bob@example.org")


@pytest.mark.parametrize("wide_filter", ["(|(mail={identity})(uid=carol))", "(|(mail={identity})(cn=*))"])
def test_several_people_are_none(settings: LdapSettings, wide_filter: str) -> None:
    wide = replace(settings, filter=wide_filter)
    with pytest.raises(MapperBroken, match="several accounts"):
        LdapMapper(wide).account("alice@example.org")


@pytest.mark.usefixtures("down")
def test_a_directory_that_is_down_is_no_answer(settings: LdapSettings) -> None:
    with pytest.raises(MapperUnavailable, match="does not answer"):
        LdapMapper(settings).account("alice@example.org")


def test_a_directory_that_takes_the_connection_and_says_nothing_is_no_answer(settings: LdapSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ldap://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MapperUnavailable, match="does not answer"):
            LdapMapper(replace(settings, url=url, timeout=1)).account("alice@example.org")


def test_who_was_found_is_remembered_until_the_expiry(settings: LdapSettings, directory: Directory) -> None:
    clock = Clock()
    mapper = LdapMapper(replace(settings, expiry=60), clock=clock)
    assert mapper.account("alice@example.org") == "alice"
    directory.stop()
    try:
        clock.seconds = 59
        assert mapper.account("alice@example.org") == "alice"
        clock.seconds = 60
        with pytest.raises(MapperUnavailable):
            mapper.account("alice@example.org")
    finally:
        directory.start()
    assert mapper.account("alice@example.org") == "alice"


def test_a_wrong_password_is_told(settings: LdapSettings, password: Path) -> None:
    password.write_text("wrong")
    with pytest.raises(MapperBroken, match="refuses the worker's password"):
        LdapMapper(settings).account("alice@example.org")


def test_without_a_password_the_directory_tells_nothing(settings: LdapSettings) -> None:
    anonymous = replace(settings, bind_dn=None, password_file=None)
    with pytest.raises(MapperUnavailable):
        LdapMapper(anonymous).account("alice@example.org")


def test_over_tls_with_a_certificate_that_is_trusted(
    settings: LdapSettings, directory: Directory, certificate: tuple[Path, Path]
) -> None:
    secured = replace(settings, url=directory.tls_url, ca_file=certificate[0])
    assert LdapMapper(secured).account("alice@example.org") == "alice"
    upgraded = replace(
        settings, start_tls=True, ca_file=certificate[0], url=directory.url.replace("127.0.0.1", "localhost")
    )
    assert LdapMapper(upgraded).account("alice@example.org") == "alice"


def test_a_server_that_nobody_vouches_for_gets_no_password(settings: LdapSettings, directory: Directory) -> None:
    for forged in (replace(settings, url=directory.tls_url), replace(settings, start_tls=True)):
        with pytest.raises(MapperUnavailable, match="does not answer"):
            LdapMapper(forged).account("alice@example.org")


def test_a_server_with_somebody_elses_certificate_gets_no_password(
    settings: LdapSettings, directory: Directory, certificate: tuple[Path, Path]
) -> None:
    elsewhere = replace(settings, ca_file=certificate[0], url=directory.tls_url.replace("localhost", "127.0.0.1"))
    with pytest.raises(MapperUnavailable, match=r"127\.0\.0\.1"):
        LdapMapper(elsewhere).account("alice@example.org")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"url": "ldap://ldap.example.org"}, "on the way"),
        ({"url": "ldap://127.0.0.1.example.org"}, "on the way"),
        ({"url": "https://ldap.example.org"}, "no address"),
        ({"filter": "(mail=*)"}, "where the identity goes"),
        ({"filter": "(|(mail={identity})(uid={identity}))"}, "where the identity goes"),
        ({"bind_dn": None}, "go together"),
        ({"timeout": 0}, "timeout"),
        ({"password_file": Path("/nowhere")}, "cannot be read"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_right_are_refused_at_once(
    settings: LdapSettings, changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(MapperBroken, match=says):
        LdapMapper(replace(settings, **changed))


def test_a_filter_that_is_none_is_told(settings: LdapSettings) -> None:
    with pytest.raises(MapperBroken, match="filter"):
        LdapMapper(replace(settings, filter="(mail={identity}")).account("alice@example.org")


@pytest.mark.parametrize(("mode", "text"), [(0o644, "x"), (0o660, "x"), (0o600, ""), (0o600, "\n")])
def test_a_password_that_others_know_or_that_is_none_is_refused(
    settings: LdapSettings, password: Path, mode: int, text: str
) -> None:
    password.write_text(text)
    password.chmod(mode)
    with pytest.raises(MapperBroken, match="password"):
        LdapMapper(settings)
