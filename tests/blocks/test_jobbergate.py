"""The block of a Jobbergate API, and the standards that all of our blocks keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.blocks.core import Block
from pydantic import ValidationError

from jobbergate_flows.blocks import BLOCK_TYPES, JobbergateAPI
from jobbergate_flows.blocks.jobbergate import default_cache
from jobbergate_flows.jobbergate import calls
from tests.cluster.jobbergate_api import AGENT, JobbergateApi
from tests.jobbergate.oidc import SECRET

FIELDS = {"base_url": "https://jobbergate.example.org", "login_domain": "https://auth.example.org/realms/a"}


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_block_type_says_what_it_is(kind: type[Block]) -> None:
    made = kind._to_block_type()
    assert made.logo_url
    assert made.documentation_url
    assert made.description
    assert "BLOCK_NAME" in (made.code_example or "")
    for name, field in kind.model_fields.items():
        assert field.title, name
        assert field.description, name


def test_it_gives_a_client_that_needs_nobody(
    jobbergate_api: JobbergateApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBBERGATE_FLOWS_STATE_DIR", str(tmp_path))
    block = JobbergateAPI.model_validate(
        {
            "base_url": jobbergate_api.url,
            "login_domain": jobbergate_api.provider.domain,
            "client_id": AGENT,
            "client_secret": SECRET,
        }
    )
    with block.client() as client:
        client.send(calls.report_cluster(60))
    # Its tokens are beside no person's.
    (token,) = tmp_path.rglob("access.token")
    assert token.stat().st_mode & 0o777 == 0o600


def test_the_secret_is_not_shown() -> None:
    block = JobbergateAPI.model_validate(FIELDS | {"client_secret": "pass-word"})
    assert "pass-word" not in repr(block) + str(block) + block.model_dump_json() + repr(block.auth()) + repr(
        block.client()
    )


def test_without_a_secret_it_has_the_tokens_of_jobbergates_own_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    auth = JobbergateAPI.model_validate(FIELDS).auth()
    assert auth.cache_directory == tmp_path / ".local/share/jobbergate3/token"
    assert not auth.may_login


def test_a_field_that_was_emptied_is_as_one_that_was_never_filled() -> None:
    empty = {"client_secret": "", "cache_directory": "", "ca_file": ""}
    block = JobbergateAPI.model_validate(FIELDS | empty)
    assert block == JobbergateAPI.model_validate(FIELDS)
    assert block.auth().cache_directory == default_cache()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"base_url": "jobbergate"}, "base_url"), ({"login_domain": "auth"}, "login_domain"), ({"timeout": 0}, "timeout")],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as refused:
        JobbergateAPI.model_validate(FIELDS | {"client_secret": "pass-word"} | wrong)
    assert "pass-word" not in str(refused.value)
