"""What a decision is made of: a run's facts, and the hash of what it asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jobbergate_flows.errors import JobbergateFlowsError

Kind = Literal["application", "flow"]


class RequestRefused(JobbergateFlowsError):
    """What a run asks for is no JSON, so that nobody can consent to it."""


@dataclass(frozen=True, slots=True)
class Creator:
    """Who made a run, as Prefect has it.

    Prefect Cloud fills it in with who was signed in (`USER`, `SERVICE`). The open-source server knows only schedules
    and automations, and takes an automation's name from a header that any client can send.

    Args:
        id: The id of the account, automation or schedule.
        type: `USER`, `SERVICE`, `AUTOMATION`, `SCHEDULE`, ...
        display_value: Its name, which on Prefect Cloud its owner can change.
    """

    id: str
    type: str
    display_value: str = ""

    @property
    def is_signed_in(self) -> bool:
        """Whether somebody was signed in: only then does it say who asks."""
        return self.type in ("USER", "SERVICE")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a run without believing what it says of itself.

    Its tags, job variables and infrastructure_pid are not here at all, and of its parameters only what will be done
    with them: the application that will be rendered, with which answers, resources and directory.

    Args:
        flow_run_id, deployment_id: Their UUIDs as text; a run may be without a deployment.
        deployment_name: `<flow>/<deployment>`.
        application: `sha256:` and the digest of the application that would be rendered; None for an ordinary flow.
        answers: The application's answers; an ordinary flow's parameters.
        resources: The Slurm options that the run states.
        directory, job_name: As the run states them; `~` is not expanded.
        retries: When its job is submitted again, and with how much more.
        work_pool: The pool that the worker serves.
        work_queue: The queue that the run came by. Any client of the API chooses it.
        created_by: Who made it; None where the server does not know.
        kind: `application`, or `flow` for one whose own code runs as the job.
    """

    flow_run_id: str
    deployment_id: str | None
    deployment_name: str | None
    application: str | None
    answers: Mapping[str, Any]
    resources: Mapping[str, Any]
    directory: str
    job_name: str
    work_pool: str
    work_queue: str | None = None
    created_by: Creator | None = None
    kind: Kind = "application"
    retries: Mapping[str, Any] = field(default_factory=dict)


def request_hash(facts: RunFacts) -> str:
    """`sha256:` and the digest of answers, resources, directory, job name and retries, as canonical JSON.

    Two values have one hash only if they are the same JSON: `1` and `1.0` differ, the order of keys does not matter.

    Raises:
        RequestRefused: They are no JSON: NaN, keys that are no text, types that JSON does not have, endless nesting.
    """
    request = {
        "answers": facts.answers,
        "resources": facts.resources,
        "directory": facts.directory,
        "job_name": facts.job_name,
    }
    if facts.retries:
        # Not as an empty one: what was consented to before there were retries still holds.
        request["retries"] = facts.retries
    try:
        _check_keys(request)
        text = json.dumps(request, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestRefused(
            f"the run's answers and resources are no JSON: {error}",
            where=f"flow run {facts.flow_run_id}",
            hint="start a run with plain values",
        ) from error
    return f"sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


def _check_keys(value: Any) -> None:
    # json.dumps would write the key 1 as "1", so that two requests had one hash.
    match value:
        case Mapping():
            for key, entry in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{key!r} is no name")
                _check_keys(entry)
        case list() | tuple():
            for entry in value:
                _check_keys(entry)
