"""The ledger: a small database of submissions.

It makes submission exactly-once (the intent is committed before sbatch runs), lets a restarted worker take its jobs up
again, and holds back what could not yet be told. One SQLite file by default; PostgreSQL where several workers share it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import platformdirs
import sqlalchemy as sa

from jobbergate_flows.slurm.claims import Claims, FileClaims, PostgresClaims
from jobbergate_flows.slurm.cluster import Witness
from jobbergate_flows.slurm.errors import LedgerError, LedgerUnreachable
from jobbergate_flows.slurm.jobs import AttemptEnd, SlurmJob

REVISION = "0003"
"""The newest revision of the schema; `migrations/versions` leads to it. `jobbergate.links` has tables of it too."""

_SQLITE = b"SQLite format 3\0"
_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "glusterfs",
    "gpfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
}  # fmt: skip


class SubmissionStatus(StrEnum):
    """Where a submission is."""

    INTENT = "intent"
    SUBMITTED = "submitted"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class SubmissionKey:
    """What a submission is, whoever makes it and however often: run, call within it, attempt.

    `scope` is a flow run's id, or a random text for a submission of no run.
    """

    scope: str
    call: str
    attempt: int = 0

    @property
    def token(self) -> str:
        """Ten characters, part of the job's name in Slurm."""
        digest = hashlib.sha256(f"{self.scope}\n{self.call}\n{self.attempt}".encode()).digest()
        return base64.b32encode(digest).decode().lower()[:10]

    @classmethod
    def once(cls) -> Self:
        """A key that nothing else has."""
        return cls(uuid.uuid4().hex, "once")


@dataclass(frozen=True, slots=True)
class Submission:
    """One row of the ledger. Times are aware (UTC).

    `asked` are the resources that the first of the attempts asked for, `retries` the policy by which another is made,
    `ending` how this one ended if there was another (`retried`).
    """

    key: str
    scope: str
    call: str
    attempt: int
    cluster: str
    user: str
    job_name: str
    script_digest: str
    directory: str
    intent_at: datetime
    status: SubmissionStatus = SubmissionStatus.INTENT
    flow_run_id: str | None = None
    kind: str = "application"
    array: bool = False
    requeue: bool = False
    standard_output: str | None = None
    standard_error: str | None = None
    job_id: str | None = None
    submitted_at: datetime | None = None
    final_at: datetime | None = None
    final_state: str | None = None
    cancel_requested: bool = False
    told: bool = False
    accounted: bool = False
    message: str | None = None
    secret_path: str | None = None
    asked: Mapping[str, Any] | None = None
    retries: Mapping[str, Any] | None = None
    retried: bool = False
    ending: AttemptEnd | None = None
    result_files: tuple[str, ...] = ()
    written_files: Mapping[str, str] = field(default_factory=dict)
    output_offsets: Mapping[str, int] = field(default_factory=dict)

    @property
    def name_in_slurm(self) -> str:
        """`<name>-<key>`: the name by which the job is found again."""
        return f"{slurm_name(self.job_name)}-{self.key}"

    @property
    def job(self) -> SlurmJob | None:
        """The job, once Slurm has it."""
        if self.job_id is None or self.submitted_at is None:
            return None
        return SlurmJob(
            cluster=self.cluster, job_id=self.job_id, key=self.key, name=self.job_name, user=self.user,
            directory=self.directory, standard_output=self.standard_output, standard_error=self.standard_error,
            submitted_at=self.submitted_at, array=self.array, requeue=self.requeue,
        )  # fmt: skip


def slurm_name(name: str) -> str:
    """A job name of letters, digits and `_.-` only, at most 48: squeue splits at commas, and Slurm prints names raw."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:48] or "job"


_metadata = sa.MetaData()
_time = sa.DateTime(timezone=True)
submissions = sa.Table(
    "submissions",
    _metadata,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("scope", sa.String(128), nullable=False),
    sa.Column("call", sa.String(255), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("cluster", sa.String(128), nullable=False),
    sa.Column("user", sa.String(64), nullable=False),
    sa.Column("job_name", sa.Text, nullable=False),
    sa.Column("script_digest", sa.String(80), nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("intent_at", _time, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("flow_run_id", sa.String(36), index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("array", sa.Boolean, nullable=False),
    sa.Column("requeue", sa.Boolean, nullable=False),
    sa.Column("standard_output", sa.Text),
    sa.Column("standard_error", sa.Text),
    sa.Column("job_id", sa.String(32)),
    sa.Column("submitted_at", _time),
    sa.Column("final_at", _time),
    sa.Column("final_state", sa.String(32)),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("told", sa.Boolean, nullable=False),
    sa.Column("accounted", sa.Boolean, nullable=False),
    sa.Column("message", sa.Text),
    sa.Column("secret_path", sa.Text),
    sa.Column("asked", sa.JSON),
    sa.Column("retries", sa.JSON),
    sa.Column("retried", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("ending", sa.JSON),
    sa.Column("result_files", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("written_files", sa.JSON, nullable=False),
    sa.Column("output_offsets", sa.JSON, nullable=False),
    sa.UniqueConstraint("scope", "call", "attempt"),
    sa.Index("submissions_status", "cluster", "status"),
    sa.Index("submissions_job", "cluster", "job_id"),
)


def default_ledger() -> str:
    """`JOBBERGATE_FLOWS_LEDGER` (a file or a database URL), or a file in the account's local state directory."""
    given = os.environ.get("JOBBERGATE_FLOWS_LEDGER")
    state = os.environ.get("JOBBERGATE_FLOWS_STATE_DIR")
    if given:
        return given
    folder = Path(state) if state else platformdirs.user_state_path("jobbergate-flows")
    return str(folder / "ledger.sqlite3")


class Ledger:
    """The submissions, as rows. Every method is one short transaction; calls from several threads are safe."""

    def __init__(self, engine: sa.Engine, claims: Claims) -> None:
        self._engine = engine
        self._claims = claims

    @classmethod
    def open(cls, where: str | Path | None = None) -> Self:
        """Open a ledger, making or upgrading it where needed.

        Args:
            where: A file or a database URL; otherwise `default_ledger()`.

        Raises:
            LedgerError: The file is on a network file system, cannot be written, or is of a newer version.
        """
        text = str(where if where is not None else default_ledger())
        try:
            if "://" in text:
                return cls(*_server(text))
            path = Path(text).expanduser().absolute()
            _refuse_foreign(path)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_network(path)
            engine = _sqlite(path)
            # Two processes that open a new ledger at once must not both make it.
            with path.with_name(path.name + ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _upgrade(engine)
            path.chmod(0o600)
        except ModuleNotFoundError as error:
            raise LedgerError(
                f"the database's driver is missing: {error}", hint="install jobbergate-flows[worker]"
            ) from error
        except (OSError, ValueError, sa.exc.SQLAlchemyError) as error:
            kind: type[LedgerError] = LedgerError
            hint = "name another file or database in JOBBERGATE_FLOWS_LEDGER"
            if "://" in text and isinstance(error, sa.exc.OperationalError):
                kind, hint = LedgerUnreachable, "start the database, or mend JOBBERGATE_FLOWS_LEDGER"
            raise kind(
                f"the ledger cannot be opened: {_reason(error)}", where=_without_password(text), hint=hint
            ) from error
        return cls(engine, FileClaims(path.with_name(path.name + ".claims")))

    @property
    def engine(self) -> sa.Engine:
        """The database, for the tables that others have beside the submissions; see `jobbergate.links`."""
        return self._engine

    def close(self) -> None:
        """Close the database's connections, and give up all claims."""
        self._claims.close()
        self._engine.dispose()

    def claim(self, key: str) -> bool:
        """Become the only one who submits this key; False when somebody else is, in this process or another.

        A claim ends with `release`, or with the process.
        """
        return self._claims.claim(key)

    def release(self, key: str) -> None:
        """Let others submit this key."""
        self._claims.release(key)

    def is_claimed(self, key: str) -> bool:
        """Whether somebody has claimed this key, in this process or another. To ask is to claim it for a moment."""
        if not self.claim(key):
            return True
        self.release(key)
        return False

    def intend(self, submission: Submission) -> Submission:
        """Commit an intent, and return it; or the row that is there already under its key."""
        values = {field.name: getattr(submission, field.name) for field in fields(submission)}
        values |= {
            "written_files": dict(submission.written_files),
            "output_offsets": dict(submission.output_offsets),
            "result_files": list(submission.result_files),
            "asked": None if submission.asked is None else dict(submission.asked),
            "retries": None if submission.retries is None else dict(submission.retries),
            "ending": None if submission.ending is None else asdict(submission.ending),
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(submissions).values(values))
        except sa.exc.IntegrityError:
            there = self.get(submission.key)
            if there is None:
                raise
            return there
        return submission

    def get(self, key: str) -> Submission | None:
        """The submission of a key."""
        found = self._select(submissions.c.key == key)
        return found[0] if found else None

    def of_flow_run(self, flow_run_id: str) -> list[Submission]:
        """A flow run's submissions, oldest first."""
        return self._select(submissions.c.flow_run_id == flow_run_id)

    def of_job(self, cluster: str, job_id: str) -> Submission | None:
        """The newest submission with that job id on a cluster (Slurm reuses ids)."""
        found = self._select(submissions.c.cluster == cluster, submissions.c.job_id == job_id)
        return found[-1] if found else None

    def unfinished(self, cluster: str) -> list[Submission]:
        """Submissions of a cluster whose job is not final, or whose end was not told yet."""
        open_ = submissions.c.status.in_([SubmissionStatus.INTENT, SubmissionStatus.SUBMITTED])
        untold = sa.and_(
            submissions.c.status == SubmissionStatus.FINAL,
            submissions.c.told.is_(False),
            submissions.c.flow_run_id.is_not(None),
        )
        return self._select(submissions.c.cluster == cluster, sa.or_(open_, untold))

    def recent(self, *, cluster: str | None = None, limit: int = 50) -> list[Submission]:
        """The newest submissions, newest first."""
        where = [submissions.c.kind != "witness", *([submissions.c.cluster == cluster] if cluster else [])]
        query = sa.select(submissions).where(*where).order_by(submissions.c.intent_at.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [_submission(row) for row in connection.execute(query)]

    def current_attempt(self, scope: str, call: str) -> int:
        """The attempt that a submission of this scope and call belongs to.

        It is the newest one's, and the next one only when the newest one's job is final and its end was told: a flow
        that is run again after a crash gets its job back, one that is retried after its end gets a new one.
        """
        found = self._select(submissions.c.scope == scope, submissions.c.call == call)
        if not found:
            return 0
        last = max(found, key=lambda row: row.attempt)
        over = last.status in (SubmissionStatus.REFUSED, SubmissionStatus.CANCELLED) or (
            last.status is SubmissionStatus.FINAL and last.told
        )
        return last.attempt + 1 if over else last.attempt

    def mark_submitted(
        self, key: str, job_id: str, at: datetime, standard_output: str | None, standard_error: str | None
    ) -> None:
        """Slurm has the job."""
        self._update(
            key, status=SubmissionStatus.SUBMITTED, job_id=job_id, submitted_at=at,
            standard_output=standard_output, standard_error=standard_error,
        )  # fmt: skip

    def mark_written(self, key: str, files: Mapping[str, str]) -> None:
        """Files were written for the submission: path -> digest."""
        self._update(key, written_files=dict(files))

    def mark_refused(self, key: str, message: str) -> None:
        """Slurm will not take the job."""
        self._update(key, status=SubmissionStatus.REFUSED, message=message, final_at=datetime.now(UTC))

    def mark_cancelled(self, key: str) -> None:
        """The submission was given up before Slurm had the job."""
        self._update(key, status=SubmissionStatus.CANCELLED, final_at=datetime.now(UTC))

    def request_cancel(self, key: str) -> Submission | None:
        """Somebody wants the submission, or its job, cancelled.

        Returns:
            The row after that: either it names the job, or whoever is submitting it will see the wish.
        """
        self._update(key, cancel_requested=True)
        return self.get(key)

    def mark_final(self, key: str, state: str, message: str, *, accounted: bool) -> None:
        """The job is over. `accounted` says that accounting holds it."""
        self._update(
            key, status=SubmissionStatus.FINAL, final_state=state, message=message,
            final_at=datetime.now(UTC), accounted=accounted,
        )  # fmt: skip

    def mark_told(self, key: str) -> None:
        """The job's end was told to whoever waits for it."""
        self._update(key, told=True)

    def mark_retried(self, key: str, ending: AttemptEnd) -> None:
        """The job has ended like this, and another attempt is made because of it."""
        self._update(key, retried=True, ending=asdict(ending))

    def forget_retries(self, flow_run_id: str) -> None:
        """No attempt follows because of how that run's newest ones ended: the next one is a person's new start."""
        newest = {
            (row.scope, row.call): row for row in sorted(self.of_flow_run(flow_run_id), key=lambda row: row.attempt)
        }
        for row in newest.values():
            if row.retried:
                self._update(row.key, retried=False)

    def attempts_before(self, scope: str, call: str, attempt: int) -> tuple[AttemptEnd, ...]:
        """How those attempts ended, oldest first, because of which this one is made: none where a person began it."""
        rows = {row.attempt: row for row in self._select(submissions.c.scope == scope, submissions.c.call == call)}
        ends: list[AttemptEnd] = []
        while (row := rows.get(attempt - len(ends) - 1)) is not None and row.retried and row.ending is not None:
            ends.append(row.ending)
        return tuple(reversed(ends))

    def set_offsets(self, key: str, offsets: Mapping[str, int]) -> None:
        """So far the job's output has been delivered: path -> bytes."""
        self._update(key, output_offsets=dict(offsets))

    def witness(self, cluster: str, user: str) -> Witness | None:
        """The newest job of a user that accounting is known to hold."""
        query = (
            sa.select(submissions)
            .where(
                submissions.c.cluster == cluster,
                submissions.c.user == user,
                submissions.c.accounted.is_(True),
                submissions.c.job_id.is_not(None),
            )
            .order_by(submissions.c.submitted_at.desc())
            .limit(1)
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        found = _submission(row)
        return Witness(found.job_id or "", found.name_in_slurm, found.submitted_at or found.intent_at)

    def add_witness(self, cluster: str, user: str, witness: Witness, key: str) -> None:
        """Keep a job that was submitted only to be a witness, and that accounting holds by now."""
        now = datetime.now(UTC)
        self.intend(
            Submission(
                key=key, scope=key, call="witness", attempt=0, cluster=cluster, user=user,
                job_name=witness.job_name.removesuffix(f"-{key}"), script_digest="", directory="/",
                intent_at=witness.submitted_at, status=SubmissionStatus.FINAL, kind="witness",
                job_id=witness.job_id, submitted_at=witness.submitted_at, final_at=now, final_state="Cancelled",
                told=True, accounted=True,
            )
        )  # fmt: skip

    def files_we_wrote(self, cluster: str, directory: str) -> dict[str, str]:
        """What earlier submissions wrote into a directory: path -> digest, the newest counts."""
        files: dict[str, str] = {}
        for row in self._select(submissions.c.cluster == cluster, submissions.c.directory == directory):
            files |= row.written_files
        return files

    def _select(self, *where: sa.ColumnElement[bool]) -> list[Submission]:
        query = sa.select(submissions).where(*where).order_by(submissions.c.intent_at)
        with self._engine.connect() as connection:
            return [_submission(row) for row in connection.execute(query)]

    def _update(self, key: str, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.update(submissions).where(submissions.c.key == key).values(values))


def _submission(row: sa.Row[Any]) -> Submission:
    values = dict(row._mapping)
    values["status"] = SubmissionStatus(values["status"])
    for name in ("intent_at", "submitted_at", "final_at"):
        moment = values[name]
        # SQLite keeps no zone.
        values[name] = moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
    values["result_files"] = tuple(values["result_files"])
    if values["ending"] is not None:
        ending = values["ending"]
        several = {name: tuple(ending[name]) for name in ("unfinished", "others")}
        values["ending"] = AttemptEnd(**{**ending, **several})
    return Submission(**values)


def _sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

    def prepare(connection: Any, _record: Any) -> None:
        # Python's sqlite3 begins no transaction before DDL: a migration that is cut short would stay half done.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # The intent must survive the machine's death.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    sa.event.listen(engine, "connect", prepare)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _server(url: str) -> tuple[sa.Engine, Claims]:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "postgresql":
        raise LedgerError(
            f"a ledger in {parsed.get_backend_name()} is not supported",
            where=str(parsed),
            hint="name a file, or postgresql+psycopg://...",
        )
    engine = sa.create_engine(parsed, pool_pre_ping=True)
    _upgrade(engine)
    return engine, PostgresClaims(engine)


def _upgrade(engine: sa.Engine) -> None:
    if _revision(engine) == REVISION:
        return
    # Imported only when there is something to do: it takes a while.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7061696)"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except Exception as error:
            raise LedgerError(
                f"the ledger's schema cannot be upgraded: {error}",
                where=str(engine.url),
                hint="it may belong to a newer version of jobbergate-flows: upgrade, or name another ledger",
            ) from error


def _revision(engine: sa.Engine) -> str | None:
    with contextlib.suppress(sa.exc.DatabaseError), engine.connect() as connection:
        found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return found
    return None


def _reason(error: Exception) -> str:
    """Why, in one line: SQLAlchemy adds its query and a link, and the drivers what they tried."""
    said = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    if isinstance(said, OSError) and said.strerror:
        return said.strerror
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return lines[0] if lines else type(said).__name__


def _without_password(text: str) -> str:
    try:
        return str(sa.make_url(text)) if "://" in text else text
    except (ValueError, sa.exc.ArgumentError):
        return "the database's URL"


def network_file_system(path: Path, mounts: str) -> str | None:
    """The network file system that a path without symbolic links lies on; None for a local one. Pure.

    Args:
        mounts: The text of `/proc/self/mounts`.
    """
    kind, depth = "", -1
    for line in mounts.splitlines():
        columns = line.split()
        if len(columns) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), columns[1]))
        # Of two at one place the later hides the earlier.
        if path.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = columns[2], len(point.parts)
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def _refuse_foreign(path: Path) -> None:
    # Before anything is written beside it.
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
        if start and start != _SQLITE:
            raise LedgerError(
                "this is no ledger, but a file of another kind",
                where=str(path),
                hint="set JOBBERGATE_FLOWS_LEDGER to a file that the ledger has for itself",
            )


def _refuse_network(path: Path) -> None:
    mounts = Path("/proc/self/mounts")
    kind = network_file_system(path.resolve(), mounts.read_text(errors="replace") if mounts.exists() else "")
    if kind is not None:
        raise LedgerError(
            f"the ledger would lie on a network file system ({kind}), where SQLite's locks are not reliable",
            where=str(path),
            hint="set JOBBERGATE_FLOWS_LEDGER to a local path, or to the URL of a PostgreSQL database",
        )


__all__: Sequence[str] = (
    "Ledger",
    "LedgerError",
    "Submission",
    "SubmissionKey",
    "SubmissionStatus",
    "default_ledger",
    "network_file_system",
    "slurm_name",
)
