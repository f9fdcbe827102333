"""The hash of what a run asks for."""

from __future__ import annotations

from typing import Any

import pytest

from agent_worker.identity.facts import Creator, RequestRefused, request_hash
from tests.agent_worker.identity.runs import a_run


def test_the_hash_is_the_same_in_every_version() -> None:
    # People have it in their files: it must never change.
    assert request_hash(a_run()) == "sha256:2a48698499cd54af604015ac2ce73df11e4f53416e490f316f02327d17b06ef1"


def test_the_order_of_keys_does_not_matter() -> None:
    assert request_hash(a_run(answers={"a": 1, "b": {"x": 1, "y": 2}})) == request_hash(
        a_run(answers={"b": {"y": 2, "x": 1}, "a": 1})
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"answers": {"steps": 11, "name": "first"}},
        {"answers": {"steps": 10.0, "name": "first"}},
        {"answers": {"steps": "10", "name": "first"}},
        {"answers": {"steps": 10, "name": "first", "more": None}},
        {"resources": {"nodes": "3", "time_limit": "30"}},
        {"directory": "~/runs/"},
        {"job_name": "x"},
        {"retries": {"attempts": 3}},
    ],
    ids=str,
)
def test_whatever_a_run_asks_for_is_in_the_hash(changed: dict[str, Any]) -> None:
    assert request_hash(a_run(**changed)) != request_hash(a_run())


def test_letters_that_look_alike_have_hashes_of_their_own() -> None:
    composed, decomposed, cyrillic, latin = "\u00e9", "e\u0301", "\u0430", "a"
    hashes = {request_hash(a_run(answers={"name": text})) for text in (composed, decomposed, cyrillic, latin)}
    assert len(hashes) == 4


def test_one_field_cannot_pass_for_another() -> None:
    assert request_hash(a_run(answers={"x": 1}, resources={})) != request_hash(a_run(answers={}, resources={"x": 1}))


def deep() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "answers", [{"a": float("nan")}, {"a": float("inf")}, {1: "a"}, {"a": {None: 1}}, {"a": {1, 2}}, {"a": deep()}]
)
def test_what_is_no_json_has_no_hash(answers: Any) -> None:
    with pytest.raises(RequestRefused, match="no JSON"):
        request_hash(a_run(answers=answers))


@pytest.mark.parametrize(
    ("kind", "signed_in"),
    [("USER", True), ("SERVICE", True), ("AUTOMATION", False), ("SCHEDULE", False), ("user", False), ("", False)],
)
def test_only_who_is_signed_in_on_prefect_cloud_is_somebody(kind: str, signed_in: bool) -> None:
    assert Creator("1", kind).is_signed_in is signed_in
