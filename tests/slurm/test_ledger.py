"""The ledger, on real SQLite and real PostgreSQL: what it keeps, who may open it, who may submit."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from jobbergate_flows.jobbergate.links import links
from jobbergate_flows.slurm import ledger as ledger_module
from jobbergate_flows.slurm.cluster import Witness
from jobbergate_flows.slurm.errors import LedgerError
from jobbergate_flows.slurm.jobs import AttemptEnd
from jobbergate_flows.slurm.ledger import (
    Ledger,
    Submission,
    SubmissionKey,
    SubmissionStatus,
    network_file_system,
    slurm_name,
)
from tests.cluster.waiting import wait_until

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def ledger_place(any_ledger_place: str) -> str:
    return any_ledger_place


def engine_of(place: str) -> sa.Engine:
    if "://" not in place:
        Path(place).parent.mkdir(exist_ok=True)
    return sa.create_engine(place if "://" in place else f"sqlite:///{place}", poolclass=sa.NullPool)


def an_intent(scope: str = "run", call: str = "script", attempt: int = 0, **changes: object) -> Submission:
    key = SubmissionKey(scope, call, attempt)
    row = Submission(
        key=key.token, scope=scope, call=call, attempt=attempt, cluster="hill", user="me", job_name="my study",
        script_digest="sha256:1", directory="/scratch/me", intent_at=NOW,
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


def test_a_submission_comes_back_as_it_was_written(ledger_place: str, ledger: Ledger) -> None:
    row = an_intent(
        flow_run_id="f1", array=True, requeue=True, secret_path="/s", written_files={"a": "sha256:2"},
        output_offsets={"/o": 7}, result_files=("*.csv",), ending=AttemptEnd("TimedOut", unfinished=(1,)), retried=True,
        standard_output="/o", message="with\nlines", submitted_at=NOW + timedelta(seconds=1),
    )  # fmt: skip
    ledger.intend(row)

    again = Ledger.open(ledger_place)

    assert again.get(row.key) == row
    again.close()


def test_the_first_intent_of_a_key_stands(ledger: Ledger) -> None:
    first = ledger.intend(an_intent(directory="/first"))

    assert ledger.intend(an_intent(directory="/second")) == first
    assert ledger.get(first.key) == first


def test_a_keys_token_tells_scope_call_and_attempt_apart_and_is_always_the_same() -> None:
    keys = [SubmissionKey("a", "b"), SubmissionKey("a", "b", 1), SubmissionKey("ab", ""), SubmissionKey("", "ab")]

    assert len({key.token for key in keys}) == 4
    assert all(len(key.token) == 10 and key.token.isalnum() for key in keys)
    assert SubmissionKey("run", "script").token == "3wxu54oyv5"
    assert SubmissionKey.once() != SubmissionKey.once()


@pytest.mark.parametrize(
    ("given", "taken"),
    [("my study", "my-study"), ("a,b|c\nd", "a-b-c-d"), ("x" * 90, "x" * 48), ("ü", "job"), ("-rf", "rf")],
)
def test_job_names_in_slurm_are_plain(given: str, taken: str) -> None:
    assert slurm_name(given) == taken


@pytest.mark.parametrize(
    ("status", "told", "attempt"),
    [
        (SubmissionStatus.INTENT, False, 0),
        (SubmissionStatus.SUBMITTED, False, 0),
        (SubmissionStatus.FINAL, False, 0),
        (SubmissionStatus.FINAL, True, 1),
        (SubmissionStatus.REFUSED, False, 1),
        (SubmissionStatus.CANCELLED, False, 1),
    ],
)
def test_the_attempt_grows_only_when_the_one_before_is_over_and_told(
    ledger: Ledger, status: SubmissionStatus, told: bool, attempt: int
) -> None:
    assert ledger.current_attempt("run", "script") == 0

    ledger.intend(an_intent(status=status, told=told))

    assert ledger.current_attempt("run", "script") == attempt
    assert ledger.current_attempt("run", "other") == 0


def test_a_life_of_a_submission(ledger: Ledger) -> None:
    row = ledger.intend(an_intent(flow_run_id="f1"))
    assert [found.key for found in ledger.unfinished("hill")] == [row.key]
    assert ledger.unfinished("dale") == []

    ledger.mark_submitted(row.key, "17", NOW, "/out", "/err")
    job = ledger.of_flow_run("f1")[0].job
    assert job is not None
    assert (job.job_id, job.standard_output, job.standard_error) == ("17", "/out", "/err")
    assert ledger.of_job("hill", "17") == ledger.get(row.key)
    assert ledger.witness("hill", "me") is None

    ledger.mark_final(row.key, "Failed", "Failed: exit code 3", accounted=True)
    assert [found.status for found in ledger.unfinished("hill")] == [SubmissionStatus.FINAL]
    assert ledger.witness("hill", "me") == Witness("17", row.name_in_slurm, NOW)

    ledger.mark_told(row.key)
    assert ledger.unfinished("hill") == []


def test_of_reused_job_ids_the_newest_submission_counts(ledger: Ledger) -> None:
    ledger.intend(an_intent("old", job_id="17", submitted_at=NOW, intent_at=NOW - timedelta(days=300)))
    new = ledger.intend(an_intent("new", job_id="17", submitted_at=NOW))

    assert ledger.of_job("hill", "17") == new


def test_the_newest_accounted_job_of_the_user_is_the_witness(ledger: Ledger) -> None:
    over: Any = {"status": SubmissionStatus.FINAL, "accounted": True}
    ledger.intend(an_intent("1", job_id="1", submitted_at=NOW - timedelta(days=2), **over))
    ledger.intend(an_intent("2", job_id="2", submitted_at=NOW - timedelta(days=1), **over))
    ledger.intend(an_intent("3", job_id="3", submitted_at=NOW, status=SubmissionStatus.FINAL))
    ledger.intend(an_intent("4", job_id="4", submitted_at=NOW, user="other", **over))

    witness = ledger.witness("hill", "me")

    assert witness is not None
    assert witness.job_id == "2"


def test_a_job_that_is_only_a_witness_is_no_submission_to_anybody(ledger: Ledger) -> None:
    made = Witness("5", "jobbergate-flows-witness-abc", NOW)

    ledger.add_witness("hill", "me", made, "abc")

    assert ledger.witness("hill", "me") == made
    assert ledger.recent() == []
    assert ledger.unfinished("hill") == []


def test_the_files_that_we_wrote_into_a_directory_are_known(ledger: Ledger) -> None:
    ledger.intend(an_intent("1", written_files={"a": "sha256:1", "b": "sha256:1"}))
    ledger.intend(an_intent("2", intent_at=NOW + timedelta(1), written_files={"a": "sha256:2"}))
    ledger.intend(an_intent("3", directory="/elsewhere", written_files={"c": "sha256:3"}))

    assert ledger.files_we_wrote("hill", "/scratch/me") == {"a": "sha256:2", "b": "sha256:1"}


def test_a_wish_to_cancel_is_answered_with_the_row_as_it_is_then(ledger: Ledger) -> None:
    row = ledger.intend(an_intent())
    ledger.mark_submitted(row.key, "17", NOW, None, None)

    wished = ledger.request_cancel(row.key)

    assert wished is not None
    assert (wished.cancel_requested, wished.job_id) == (True, "17")


def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.sqlite3"
    Ledger.open(path).close()

    assert path.stat().st_mode & 0o077 == 0


def test_several_processes_open_a_new_ledger_at_once(ledger_place: str) -> None:
    program = f"from jobbergate_flows.slurm.ledger import Ledger; print(Ledger.open({ledger_place!r}).recent())"
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    assert [process.communicate(timeout=60) for process in processes] == [("[]\n", "")] * 4


def test_opening_a_ledger_of_today_loads_no_migrations(ledger_place: str, ledger: Ledger) -> None:
    program = (
        f"import sys; from jobbergate_flows.slurm.ledger import Ledger; Ledger.open({ledger_place!r});"
        "print('alembic' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_ledger_of_an_earlier_version_keeps_its_rows(ledger_place: str) -> None:
    migrations = Path(ledger_module.__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(migrations))
    engine = engine_of(ledger_place)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    row = an_intent(status=SubmissionStatus.SUBMITTED, job_id="7", submitted_at=NOW)
    with engine.begin() as connection:
        table = sa.Table("submissions", sa.MetaData(), autoload_with=connection)
        values = {column.name: getattr(row, column.name) for column in table.columns}
        connection.execute(sa.insert(table).values({**values, "written_files": {}, "output_offsets": {}}))
    engine.dispose()

    opened = Ledger.open(ledger_place)

    assert opened.get(row.key) == row
    opened.close()


def test_an_attempt_knows_the_ends_of_those_that_led_to_it(ledger: Ledger) -> None:
    first, second, third = AttemptEnd("OutOfMemory", memory="1G"), AttemptEnd("TimedOut", unfinished=(1, 4)), None
    for attempt, end in enumerate([AttemptEnd("NodeFail"), first, second, third]):
        row = an_intent("run", "job", attempt)
        ledger.intend(row)
        ledger.mark_final(row.key, "Failed", "it failed", accounted=False)
        # After attempt 0 somebody began anew by hand.
        if end is not None and attempt > 0:
            ledger.mark_retried(row.key, end)
        ledger.mark_told(row.key)

    assert ledger.attempts_before("run", "job", 3) == (first, second)
    assert ledger.attempts_before("run", "job", 2) == (first,)
    assert ledger.attempts_before("run", "job", 1) == ()
    assert ledger.attempts_before("run", "job", 4) == ()


def test_after_a_cancelled_retry_the_next_attempt_has_none_before_it(ledger: Ledger) -> None:
    end = AttemptEnd("OutOfMemory")
    for run, attempt in (("cancelled", 0), ("cancelled", 1), ("other", 0)):
        row = ledger.intend(an_intent(run, "job", attempt, flow_run_id=run))
        ledger.mark_final(row.key, "OutOfMemory", "it lacked memory", accounted=True)
        ledger.mark_retried(row.key, end)
        ledger.mark_told(row.key)

    ledger.forget_retries("cancelled")

    assert (ledger.current_attempt("cancelled", "job"), ledger.attempts_before("cancelled", "job", 2)) == (2, ())
    assert ledger.attempts_before("cancelled", "job", 1) == (end,)
    assert ledger.attempts_before("other", "job", 1) == (end,)


def test_the_migrations_lead_to_the_table_that_is_used(ledger_place: str, ledger: Ledger) -> None:
    with engine_of(ledger_place).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), links.metadata) == []


def test_a_migration_that_was_cut_short_is_made_again(ledger_place: str) -> None:
    cut_short = f"""
import os
import alembic.op
from jobbergate_flows.slurm.ledger import Ledger
alembic.op.create_index = lambda *_args: os._exit(9)
Ledger.open({ledger_place!r})
"""
    assert subprocess.run([sys.executable, "-c", cut_short]).returncode == 9

    ledger = Ledger.open(ledger_place)

    assert ledger.recent() == []
    ledger.close()


def test_a_ledger_of_a_newer_version_is_refused(ledger_place: str, ledger: Ledger) -> None:
    with engine_of(ledger_place).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(LedgerError, match="newer version"):
        Ledger.open(ledger_place)


def test_what_is_no_database_or_no_place_for_one_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("This is no database." * 100)

    with pytest.raises(LedgerError, match="text"):
        Ledger.open(text)
    with pytest.raises(LedgerError):
        Ledger.open(text / "below")
    with pytest.raises(LedgerError, match="mysql"):
        Ledger.open("mysql://host/database")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/ledger", "nfs4"),
        ("/home/me/local/ledger", None),
        ("/homestead/ledger", None),
        ("/scratch dir/ledger", "lustre"),
        ("/ledger", None),
    ],
)
def test_a_network_file_system_is_recognized_by_the_mounts(path: str, kind: str | None) -> None:
    mounts = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sda2 /home/me/local xfs rw 0 0
mgs:/fs /scratch\\040dir lustre rw 0 0
"""
    assert network_file_system(Path(path), mounts) == kind


def test_one_at_a_time_claims_a_key(ledger_place: str, ledger: Ledger) -> None:
    other = Ledger.open(ledger_place)

    assert ledger.claim("key")
    assert not ledger.claim("key")
    assert not other.claim("key")
    assert other.claim("another")

    ledger.release("key")

    assert other.claim("key")
    other.close()


def test_who_asks_whether_a_key_is_claimed_does_not_keep_it(ledger_place: str, ledger: Ledger) -> None:
    other = Ledger.open(ledger_place)
    assert not ledger.is_claimed("key")

    assert other.claim("key")

    assert ledger.is_claimed("key")
    assert other.is_claimed("key")
    other.close()
    # PostgreSQL notices by itself that a connection was closed.
    wait_until(lambda: not ledger.is_claimed("key"), 30, "the end of the claim")


def test_claims_are_taken_again_when_their_connection_broke(ledger_place: str, ledger: Ledger) -> None:
    other = Ledger.open(ledger_place)
    for key in ("mine", "mine too"):
        assert ledger.claim(key)
    if ledger_place.startswith("postgresql"):
        with sa.create_engine(ledger_place).connect() as connection:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")

    assert ledger.is_claimed("mine")

    assert other.is_claimed("mine")
    assert other.is_claimed("mine too")
    other.close()


def test_of_many_threads_one_gets_the_key(ledger_place: str) -> None:
    ledgers = [Ledger.open(ledger_place) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for key in ["a", "b", "c"] * 20:
            asking = [ledger for ledger in ledgers for _ in range(2)]
            got = list(pool.map(Ledger.claim, asking, [key] * len(asking)))
            assert sum(got) == 1
            asking[got.index(True)].release(key)


def test_a_claim_ends_with_its_process(ledger_place: str, ledger: Ledger) -> None:
    program = f"""
from jobbergate_flows.slurm.ledger import Ledger
ledger = Ledger.open({ledger_place!r})
print(ledger.claim("key"), flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert not ledger.claim("key")

    process.send_signal(signal.SIGKILL)
    process.wait(10)

    # PostgreSQL notices by itself, a moment later, that whom it served is gone.
    wait_until(lambda: ledger.claim("key"), 30, "the end of the claim")
    ledger.release("key")
