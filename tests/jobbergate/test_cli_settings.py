"""A person's settings of Jobbergate: what its released CLI makes of variables and files is made of them here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.jobbergate import cli_settings
from jobbergate_flows.jobbergate.cli_settings import CliSettings, read_settings
from jobbergate_flows.jobbergate.errors import InvalidSettings
from tests.cluster.jobbergate_cli import COMMAND

THEIRS = "from jobbergate_cli.config import settings; print(settings.model_dump_json())"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and the home directory, and no site's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cli_settings, "SITE_FILE", tmp_path / "default")
    return tmp_path


def set_all(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def theirs(folder: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [str(COMMAND.with_name("python")), "-c", THEIRS],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("jobbergate_cli_command")
@pytest.mark.parametrize(
    ("file", "variables"),
    [
        ("", {}),
        ("", {"BASE_API_URL": "https://api.example.org", "OIDC_DOMAIN": "auth.example.org/realms/a"}),
        ("", {"BASE_API_URL": "https://api.example.org", "ARMADA_API_BASE": "https://older.example.org"}),
        ("", {"oidc_client_id": "small", "JOBBERGATE_CACHE_DIR": "~/elsewhere"}),
        ("OIDC_CLIENT_ID='quoted'\nexport OIDC_USE_HTTPS=no\n# a comment\nDJANGO_SECRET=1\n", {}),
        ("OIDC_CLIENT_ID=file\nOIDC_CLIENT_SECRET=hidden\n", {"OIDC_CLIENT_ID": "variable"}),
        ("ARMADA_API_BASE=https://file.example.org\n", {"BASE_API_URL": "https://variable.example.org"}),
        ("JOBBERGATE_REQUESTS_TIMEOUT=3\n", {"OIDC_USE_HTTPS": "0"}),
    ],
)
def test_they_are_those_of_the_released_cli(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, variables: dict[str, str]
) -> None:
    (folder / ".env").write_text(file)
    set_all(monkeypatch, variables)

    ours = read_settings()

    found = theirs(folder, variables)
    scheme = "https" if found["OIDC_USE_HTTPS"] else "http"
    secret = ours.oidc_client_secret
    assert ours.api_url == found["BASE_API_URL"]
    assert ours.login_domain == f"{scheme}://{found['OIDC_DOMAIN']}"
    assert ours.oidc_client_id == found["OIDC_CLIENT_ID"]
    assert (secret.get_secret_value() if secret else None) == found["OIDC_CLIENT_SECRET"]
    assert str(ours.token_directory) == found["JOBBERGATE_USER_TOKEN_DIR"]
    assert ours.jobbergate_requests_timeout == found["JOBBERGATE_REQUESTS_TIMEOUT"]


def test_what_is_given_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"ARMADA_API_BASE": "https://a.example.org", "OIDC_DOMAIN": "a.example.org/realms/a"})

    settings = read_settings(
        api_url="http://127.0.0.1:1",
        oidc_domain="http://127.0.0.1:2/realms/b",
        oidc_client_id="b",
        cache_directory=Path("here"),
    )

    assert settings.api_url == "http://127.0.0.1:1"
    assert settings.login_domain == "http://127.0.0.1:2/realms/b"
    assert settings.oidc_client_id == "b"
    assert settings.token_directory == folder / "here" / "token"


def test_with_a_sites_file_no_other_is_read(folder: Path) -> None:
    (folder / "default").write_text("OIDC_CLIENT_ID=site\n")
    (folder / ".env").write_text("OIDC_CLIENT_ID=own\nOIDC_DOMAIN=own.example.org/realms/own\n")

    settings = read_settings()

    assert settings.oidc_client_id == "site"
    assert settings.oidc_domain == CliSettings.model_fields["oidc_domain"].default


def test_a_secret_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"OIDC_CLIENT_SECRET": "hidden-hidden"})

    assert "hidden-hidden" not in f"{read_settings()!r} {read_settings()}"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BASE_API_URL", "api.example.org", "it must begin with https://"),
        ("ARMADA_API_BASE", "ftp://api.example.org", "it must begin with https://"),
        ("OIDC_USE_HTTPS", "perhaps", "boolean"),
        ("JOBBERGATE_REQUESTS_TIMEOUT", "0", "greater than 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(InvalidSettings, match=f"the setting {name} has a wrong value") as caught:
        read_settings()

    assert says in caught.value.message


@pytest.mark.parametrize(
    ("owner", "group", "mode"),
    [(65534, os.getegid(), 0o644), (os.geteuid(), os.getegid(), 0o666), (os.geteuid(), 65534, 0o664)],
)
def test_no_address_is_taken_from_a_file_that_others_write(folder: Path, owner: int, group: int, mode: int) -> None:
    file = folder / ".env"
    file.write_text("ARMADA_API_BASE=https://thief.example.org\n")
    if (owner, group) != (os.geteuid(), os.getegid()):
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(file, owner, group)
    file.chmod(mode)

    with pytest.raises(InvalidSettings, match="it sets ARMADA_API_BASE"):
        read_settings()

    # What is in it is for something else.
    file.write_text("DJANGO_SECRET=1\n")
    assert read_settings().armada_api_base is None


def test_a_file_that_the_own_group_may_write_to_is_read(folder: Path) -> None:
    file = folder / ".env"
    file.write_text("ARMADA_API_BASE=https://jobbergate.example.org\n")
    file.chmod(0o664)
    assert read_settings().armada_api_base == "https://jobbergate.example.org"


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / ".env").write_bytes(b"OIDC_CLIENT_ID=\xff\n")

    with pytest.raises(InvalidSettings, match=r"\.env: the settings cannot be read: it is no UTF-8 text"):
        read_settings()
