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
    with pytest.raises(ValidationError, match=words):
        InfluxMetrics.model_validate(fields)
