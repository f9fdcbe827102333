"""The audit log: what a line says, and what happens when nobody takes it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_worker.identity.audit import MAX_LINE, AuditLog, AuditUnavailable, record_of, record_of_job
from agent_worker.identity.facts import RunFacts, request_hash
from agent_worker.identity.policy import Allowed, Decision, Denied, IdentityPolicy, NeedsConsent
from tests.agent_worker.identity.runs import DIGEST, NAME, NOW, a_run

POLICY = IdentityPolicy("owner", consent=True)
ALLOWED = Allowed("alice", "binding pool=slurm (line 1)")
AUTHPRIV_INFO, AUTHPRIV_NOTICE = 10 * 8 + 6, 10 * 8 + 5


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(5)
        yield listening


def logged(syslog: socket.socket, decision: Decision, facts: RunFacts | None = None) -> tuple[str, dict[str, Any]]:
    AuditLog(syslog.getsockname()).write(record_of(facts or a_run(), POLICY, decision, NOW))
    head, _, line = syslog.recv(65_536).decode().partition(": ")
    fields: dict[str, Any] = json.loads(line)
    return head, fields


def test_a_decision_is_one_line_that_says_who_what_and_by_which_proof(syslog: socket.socket) -> None:
    head, fields = logged(syslog, ALLOWED)

    assert head.startswith(f"<{AUTHPRIV_INFO}>jobbergate-flows[")
    assert fields == {
        "time": "2026-06-01T12:00:00.000+00:00",
        "decision": "allowed",
        "policy": "owner+consent",
        "account": "alice",
        "proof": "binding pool=slurm (line 1)",
        "flow_run": a_run().flow_run_id,
        "deployment": NAME,
        "application": DIGEST,
        "request": request_hash(a_run()),
    }


def test_who_was_not_let_in_is_told_with_the_reason(syslog: socket.socket) -> None:
    denied, waiting = Denied("nobody's", "bind it"), NeedsConsent("alice", "consent add", "no line", "pool")

    head, fields = logged(syslog, denied)
    assert head.startswith(f"<{AUTHPRIV_NOTICE}>")
    assert (fields["decision"], fields["reason"]) == ("denied", "nobody's")
    assert "account" not in fields

    _, fields = logged(syslog, waiting)
    assert (fields["decision"], fields["account"], fields["reason"]) == ("needs-consent", "alice", "no line")


def test_the_job_is_told_once_there_is_one(syslog: socket.socket) -> None:
    AuditLog(syslog.getsockname()).write(record_of_job(a_run(), POLICY, ALLOWED, "4711", NOW))
    fields = json.loads(syslog.recv(65_536).decode().partition(": ")[2])
    assert (fields["decision"], fields["job"], fields["account"]) == ("submitted", "4711", "alice")


def test_answers_are_not_told(syslog: socket.socket) -> None:
    AuditLog(syslog.getsockname()).write(record_of(a_run(answers={"token": "s3cret"}), POLICY, ALLOWED, NOW))
    assert b"s3cret" not in syslog.recv(65_536)


@pytest.mark.parametrize("name", ["a/b\n<86>su: root", "a/\x1b[2J\r\x00", "a/\u2028\u202e", "a/\ud800"], ids=ascii)
def test_no_name_makes_a_line_of_its_own(syslog: socket.socket, name: str) -> None:
    AuditLog(syslog.getsockname()).write(record_of(a_run(deployment_name=name), POLICY, ALLOWED, NOW))
    written = syslog.recv(65_536).decode("ascii")
    assert written.isprintable()
    assert json.loads(written.partition(": ")[2])["deployment"] == name


@pytest.mark.parametrize("letter", ["x", "\n", "é", "\U0001f600"], ids=ascii)
def test_no_line_is_too_long(syslog: socket.socket, letter: str) -> None:
    long = letter * 100_000
    facts = a_run(deployment_name=long, application=long, flow_run_id=long)
    for decision in (Allowed(long, long), NeedsConsent(long, long, long, long), Denied(long, long)):
        AuditLog(syslog.getsockname()).write(record_of(facts, POLICY, decision, NOW))
        written = syslog.recv(65_536)
        assert len(written) <= MAX_LINE
        assert json.loads(written.partition(b": ")[2])["deployment"].endswith("...")


def test_a_request_without_a_hash_is_logged_too(syslog: socket.socket) -> None:
    _, fields = logged(syslog, Denied("no JSON", ""), a_run(answers={"a": float("nan")}))
    assert "request" not in fields


def test_a_log_that_nobody_listens_to_is_an_error(tmp_path: Path) -> None:
    for address in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(AuditUnavailable, match="takes no line"):
            AuditLog(str(address)).write(record_of(a_run(), POLICY, ALLOWED, NOW))


def test_a_log_that_has_ended_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    address = str(tmp_path / "log")
    log, record = AuditLog(address), record_of(a_run(), POLICY, ALLOWED, NOW)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(address)
        log.write(record)
    with pytest.raises(AuditUnavailable):
        log.write(record)
    Path(address).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(address)
        log.write(record)
        assert second.recv(65_536)


def test_a_log_that_takes_no_more_is_an_error(syslog: socket.socket) -> None:
    log, record = AuditLog(syslog.getsockname(), patience=0.01), record_of(a_run(), POLICY, ALLOWED, NOW)

    def fill() -> None:
        for _ in range(100_000):
            log.write(record)

    with pytest.raises(AuditUnavailable):
        fill()
