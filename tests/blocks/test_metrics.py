"""The block of the database of metrics."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from jobbergate_flows.blocks import InfluxMetrics
from jobbergate_flows.metrics.flux import FluxReader
from jobbergate_flows.metrics.influxql import InfluxQLReader


def test_it_gives_the_reader_of_its_flavour() -> None:
    assert isinstance(InfluxMetrics(url="http://influx:8086").reader(), InfluxQLReader)
    flux = InfluxMetrics.model_validate({"url": "https://influx", "flavour": "flux", "org": "site", "token": "secret"})
    assert isinstance(flux.reader(), FluxReader)


def test_secrets_are_not_shown() -> None:
    block = InfluxMetrics.model_validate({"url": "http://influx", "username": "me", "password": "pass-word"})
    assert "pass-word" not in repr(block) + str(block) + block.model_dump_json()


@pytest.mark.parametrize(
    "url", ["http://me:pass%2Fword@influx:8086", "http://me:pass/word@influx:8086/", "http://me:pass/word@influx:8086"]
)
def test_a_user_in_the_url_is_no_part_of_it(url: str) -> None:
    block = InfluxMetrics(url=url)

    assert (block.url, block.username) == ("http://influx:8086", "me")
    assert block.password is not None
    assert block.password.get_secret_value() == "pass/word"
    # What has its own field counts.
    other = InfluxMetrics.model_validate({"url": url, "username": "you", "password": "own"})
    assert (other.url, other.username, other.password and other.password.get_secret_value()) == (
        "http://influx:8086", "you", "own",
    )  # fmt: skip
    assert InfluxMetrics.model_validate({"url": url, "token": "t"}).username is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "influx:8086"}, "url"),
        ({"url": "http://influx", "flavour": "flux"}, "an organisation and a token"),
        ({"url": "http://influx", "flavour": "flux", "org": "a", "token": "b", "retention_policy": "c"}, "bucket"),
        ({"url": "http://influx", "username": "a", "token": "b"}, "not both"),
        ({"url": "http://influx", "timeout": 0}, "timeout"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as refused:
        InfluxMetrics.model_validate(fields | {"password": "pass-word"})
    assert "pass-word" not in str(refused.value)
