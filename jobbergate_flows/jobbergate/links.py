"""Which runs are job submissions in Jobbergate too, and what Jobbergate was not told yet: two tables of the ledger.

What happens to a job is queued here, in its order, before anybody tries to tell it, so that an API that is down holds
nothing back and nothing is lost with a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import Field, TypeAdapter

from jobbergate_flows.jobbergate.models import ActiveSubmission, JobData
from jobbergate_flows.jobbergate.models import SubmissionStatus as ApiStatus
from jobbergate_flows.jobbergate.states import is_end
from jobbergate_flows.slurm.ledger import Ledger, SubmissionStatus, submissions


@dataclass(frozen=True, slots=True)
class Link:
    """One run's tie to one job submission of one API.

    Args:
        api: Whose API: the name of a `JobbergateAPI` block, or "" for the worker's own.
        submission_id: The job submission's id in Jobbergate, once it is known.
        job_script_id: The job script's, of a mirror that was begun to be made.
        key: The key of the ledger's submission, once there is one; of several attempts the newest.
        bridged: Whether it came from Jobbergate; otherwise it is the mirror of a run of ours.
        closed: Nothing is to be told of it any more.
        trouble: What the API refused for good, for people.
        ended: Its job's end was told and taken.
        shown: Its run names it.
    """

    id: int
    api: str
    submission_id: int | None
    job_script_id: int | None
    flow_run_id: str | None
    key: str | None
    bridged: bool
    closed: bool
    trouble: str | None
    ended: bool = False
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Create:
    """The first message of a mirror: there is to be a job script with a job submission.

    It waits until the ledger knows the job's Slurm id, and is forgotten with a submission that gets none.

    Args:
        name: Of both.
        description: Of both; it holds the submission's key, by which they are found again.
        script: The job script's text, `script_name` the name of its file.
        files: The supporting files: name -> content.
        directory: Where the job runs.
        sbatch_arguments: What sbatch was given beside the script.
    """

    name: str
    description: str
    script_name: str
    script: str = field(repr=False)
    directory: str
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    sbatch_arguments: tuple[str, ...] = ()
    kind: Literal["create"] = "create"


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submission that waited in Jobbergate has its job."""

    job: JobData
    kind: Literal["submitted"] = "submitted"


@dataclass(frozen=True, slots=True)
class State:
    """What a job has come to."""

    job: JobData
    kind: Literal["state"] = "state"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A submission that waited in Jobbergate is not submitted, and why."""

    reason: str
    kind: Literal["rejected"] = "rejected"


Message = Create | Submitted | State | Rejected
_messages: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that was not told yet.

    Args:
        tries: How often it was begun to be sent: what it asks for may be done already.
        slurm_job_id: The job of its link's newest attempt, as the ledger has it.
    """

    id: int
    link: Link
    message: Message
    tries: int = 0
    slurm_job_id: str | None = None


links = sa.Table(
    "jobbergate_links",
    submissions.metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("api", sa.String(255), nullable=False),
    sa.Column("submission_id", sa.Integer),
    sa.Column("job_script_id", sa.Integer),
    sa.Column("flow_run_id", sa.String(36), index=True),
    sa.Column("key", sa.String(32), index=True),
    sa.Column("bridged", sa.Boolean, nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False, default=False),
    sa.Column("closed", sa.Boolean, nullable=False, default=False),
    sa.Column("shown", sa.Boolean, nullable=False, default=False),
    sa.Column("trouble", sa.Text),
    # What was queued last of its job, so that it is not queued twice.
    sa.Column("newest", sa.Text),
    sa.Column("made_at", sa.DateTime(timezone=True), nullable=False, default=lambda: datetime.now(UTC)),
    sa.UniqueConstraint("api", "submission_id"),
    sa.UniqueConstraint("api", "key"),
    sa.Index("jobbergate_links_open", "closed", "api"),
    sqlite_autoincrement=True,
)
messages = sa.Table(
    "jobbergate_messages",
    submissions.metadata,
    # Never used again: who has sent one deletes it by its id.
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("link", sa.Integer, sa.ForeignKey("jobbergate_links.id"), nullable=False, index=True),
    # Slurm's word in a `State`.
    sa.Column("state", sa.String(32)),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sqlite_autoincrement=True,
)

_FIELDS = (
    "id", "api", "submission_id", "job_script_id", "flow_run_id", "key", "bridged", "closed", "trouble", "ended",
    "shown",
)  # fmt: skip


class Links:
    """The links, as rows. Every method is one short transaction; calls from several threads are safe.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: of every method, where the ledger cannot be read or written.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine

    def bridge(self, api: str, submission_id: int, flow_run_id: str | None = None) -> Link:
        """The link of a job submission that came from Jobbergate; made where there is none."""
        return self._made(
            [links.c.api == api, links.c.submission_id == submission_id],
            api=api, submission_id=submission_id, flow_run_id=flow_run_id, bridged=True,
        )  # fmt: skip

    def mirror(self, api: str, key: str, flow_run_id: str | None, create: Create | None = None) -> Link:
        """The link of a submission of ours that is to be in Jobbergate too; made where there is none.

        Args:
            create: Its first message, queued when the link is made.
        """
        return self._made(
            [links.c.api == api, links.c.key == key], create, api=api, key=key, flow_run_id=flow_run_id, bridged=False
        )

    def attach(
        self,
        link: int,
        *,
        key: str | None = None,
        flow_run_id: str | None = None,
        submission_id: int | None = None,
        job_script_id: int | None = None,
        ended: bool | None = None,
        closed: bool | None = None,
        shown: bool | None = None,
        trouble: str | None = None,
    ) -> None:
        """Keep what has become known of a link; what is None stays as it is."""
        given = {
            "key": key, "flow_run_id": flow_run_id, "submission_id": submission_id, "job_script_id": job_script_id,
            "ended": ended, "closed": closed, "shown": shown, "trouble": trouble,
        }  # fmt: skip
        values = {name: value for name, value in given.items() if value is not None}
        if values:
            with self._engine.begin() as connection:
                connection.execute(sa.update(links).where(links.c.id == link).values(values))

    def get(self, link: int) -> Link | None:
        """A link by its own id."""
        return self._one(links.c.id == link)

    def of_key(self, key: str) -> Link | None:
        """The newest link of a submission of the ledger."""
        return self._one(links.c.key == key)

    def of_flow_run(self, flow_run_id: str) -> list[Link]:
        """A flow run's links, oldest first: one for each attempt of a mirror."""
        return self._select(links.c.flow_run_id == flow_run_id)

    def of_submission(self, api: str, submission_id: int) -> Link | None:
        """The link of a job submission."""
        return self._one(links.c.api == api, links.c.submission_id == submission_id)

    def open(self, api: str | None = None) -> list[Link]:
        """The links that are not closed, oldest first; of one API where it is named."""
        return self._select(links.c.closed.is_(False), *_of_api(api))

    def unshown(self) -> list[Link]:
        """The links whose runs do not name their job submissions yet, oldest first."""
        return self._select(
            links.c.shown.is_(False), links.c.submission_id.is_not(None), links.c.flow_run_id.is_not(None)
        )

    def queue(self, link: int, message: Message) -> None:
        """Have something told, after all that was queued for the link before.

        What says the same of a job as the newest before is not queued again, nor anything of a job that has ended; of
        the words in one state that were not told yet only the newest is kept. A closed link takes nothing.
        """
        body = _messages.dump_json(message).decode()
        said = message.job if isinstance(message, State | Submitted) else None
        state = message.job.slurm_job_state if isinstance(message, State) else None
        with self._engine.begin() as connection:
            # The row is locked first, so that two who queue at once do not both read the same newest.
            taken = connection.execute(
                sa.update(links).where(links.c.id == link, links.c.closed.is_(False)).values(closed=False)
            ).rowcount
            if not taken:
                return
            newest = _said(connection.execute(sa.select(links.c.newest).where(links.c.id == link)).scalar())
            if said is not None and newest is not None and (said == newest or is_end(newest.slurm_job_state)):
                return
            if state is not None:
                last = connection.execute(
                    sa.select(messages.c.id, messages.c.state)
                    .where(messages.c.link == link)
                    .order_by(messages.c.id.desc())
                    .limit(1)
                ).one_or_none()
                if last is not None and last.state == state:
                    connection.execute(sa.delete(messages).where(messages.c.id == last.id))
            connection.execute(sa.insert(messages).values(link=link, state=state, body=body))
            if said is not None:
                connection.execute(sa.update(links).where(links.c.id == link).values(newest=said.model_dump_json()))

    def newest(self, link: int) -> JobData | None:
        """What was queued last of the link's job, told or not; None before anything was."""
        with self._engine.connect() as connection:
            return _said(connection.execute(sa.select(links.c.newest).where(links.c.id == link)).scalar())

    def apis_waiting(self) -> list[str]:
        """The APIs for which something waits."""
        query = sa.select(links.c.api).distinct().join_from(links, messages, messages.c.link == links.c.id)
        with self._engine.connect() as connection:
            return list(connection.execute(query.order_by(links.c.api)).scalars())

    def waiting(
        self, api: str | None = None, *, limit: int | None = None, without: Sequence[int] = ()
    ) -> list[Waiting]:
        """What was not told yet and can be, oldest first, for each link in its order.

        Args:
            limit: So many at most.
            without: Links that are left out.
        """
        query = (
            sa.select(messages, *(links.c[name].label(f"link_{name}") for name in _FIELDS), submissions.c.job_id)
            .join_from(messages, links, messages.c.link == links.c.id)
            .join(submissions, submissions.c.key == links.c.key, isouter=True)
            # A mirror is made when Slurm has the job.
            .where(sa.or_(links.c.bridged.is_(True), submissions.c.job_id.is_not(None)), *_of_api(api))
            .where(links.c.id.not_in(without))
            .order_by(messages.c.id)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [
                Waiting(
                    row.id,
                    Link(**{name: row._mapping[f"link_{name}"] for name in _FIELDS}),
                    _messages.validate_json(row.body),
                    row.tries,
                    row.job_id,
                )
                for row in connection.execute(query)
            ]

    def trying(self, message_id: int) -> None:
        """A message is about to be sent: from now on what it asks for may have been done."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(messages).where(messages.c.id == message_id).values(tries=messages.c.tries + 1)
            )

    def sent(self, message_id: int) -> None:
        """A message was told, or never will be."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(messages).where(messages.c.id == message_id))

    def close(self, link: int, trouble: str | None = None) -> None:
        """Nothing is told of a link any more; what waits is forgotten.

        Args:
            trouble: Why, where something was refused for good.
        """
        with self._engine.begin() as connection:
            connection.execute(sa.update(links).where(links.c.id == link).values(closed=True))
            if trouble is not None:
                connection.execute(sa.update(links).where(links.c.id == link).values(trouble=trouble))
            connection.execute(sa.delete(messages).where(messages.c.link == link))

    def close_ended(self, *, without: Sequence[str] = ()) -> int:
        """Close the links whose end was told and taken; how many there were.

        Args:
            without: APIs whose links are left out.
        """
        ended = sa.and_(links.c.ended.is_(True), links.c.closed.is_(False), links.c.api.not_in(without))
        with self._engine.begin() as connection:
            ids = sa.select(links.c.id).where(ended)
            connection.execute(sa.delete(messages).where(messages.c.link.in_(ids)))
            return connection.execute(sa.update(links).where(ended).values(closed=True)).rowcount

    def forget_unsubmitted(self, cluster: str) -> int:
        """Remove the mirrors of submissions that ended before Slurm had a job; how many there were."""
        given_up = sa.select(submissions.c.key).where(
            submissions.c.cluster == cluster,
            submissions.c.status.in_([SubmissionStatus.REFUSED, SubmissionStatus.CANCELLED]),
            submissions.c.job_id.is_(None),
        )
        gone = sa.and_(links.c.bridged.is_(False), links.c.submission_id.is_(None), links.c.key.in_(given_up))
        with self._engine.begin() as connection:
            ids = sa.select(links.c.id).where(gone)
            connection.execute(sa.delete(messages).where(messages.c.link.in_(ids)))
            return connection.execute(sa.delete(links).where(gone)).rowcount

    def _made(self, where: Sequence[sa.ColumnElement[bool]], create: Create | None = None, **values: Any) -> Link:
        there = self._one(*where)
        if there is not None:
            return there
        try:
            with self._engine.begin() as connection:
                made = connection.execute(sa.insert(links).values(values)).inserted_primary_key
                if create is not None and made is not None:
                    body = _messages.dump_json(create).decode()
                    connection.execute(sa.insert(messages).values(link=made[0], body=body))
        except sa.exc.IntegrityError:
            # Somebody else was quicker.
            if self._one(*where) is None:
                raise
        found = self._one(*where)
        assert found is not None
        return found

    def _one(self, *where: sa.ColumnElement[bool]) -> Link | None:
        found = self._select(*where)
        return found[-1] if found else None

    def _select(self, *where: sa.ColumnElement[bool]) -> list[Link]:
        query = sa.select(*(links.c[name] for name in _FIELDS)).where(*where).order_by(links.c.id)
        with self._engine.connect() as connection:
            return [Link(**row._mapping) for row in connection.execute(query)]


def cancelled(active: Iterable[ActiveSubmission], among: Iterable[Link]) -> list[Link]:
    """Those links whose job somebody has cancelled in Jobbergate, and whose end was not told yet. Pure.

    Args:
        active: All that the API lists for the links' client; see `calls.list_active`.
        among: Links of that API that are not closed.
    """
    wished = {submission.id for submission in active if submission.status is ApiStatus.CANCELLED}
    return [link for link in among if link.submission_id in wished and not link.ended]


def _said(newest: str | None) -> JobData | None:
    return None if newest is None else JobData.model_validate_json(newest)


def _of_api(api: str | None) -> list[sa.ColumnElement[bool]]:
    return [] if api is None else [links.c.api == api]
