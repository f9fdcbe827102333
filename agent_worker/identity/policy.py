"""Whose run it is: the site's policies, and what they decide. Pure: it reads no file and asks nobody.

What each trusts:

- **single-user**: every run is one account's. Trusted are all who can write to the Prefect API: any of them runs any
  code as that account. Give it to a worker whose users are one person or one group.
- **owner**: the site's table says whose run it is, or else Prefect Cloud and a mapper do. Trusted is the table, and
  with it, for each selector:
  - a *deployment* with its application's digest: whoever can write to the API chooses answers, resources and directory,
    not the application. Answers end up in a shell script, so an application that does not quote them runs what they
    say.
  - a *queue*: any client puts a run into any queue of the pool, so this trusts all who can write to the API.
  - *created_by*, and the mappers: Prefect Cloud's word on who was signed in. Anybody who can edit that run's
    parameters before the worker reads them is trusted as well. The open-source server's word is never taken: it knows
    only schedules and automations, and any client may claim to be one.
  - a *pool*: all who can write to the API, as single-user does.
- **consent**, on top of either: the user's own file decides whether a run may be theirs. Trusted is only the user:
  without `answers=any` and `flows=any` nobody can run anything but exactly what was allowed.

Ordinary flows, whose code nothing pins, are refused under `owner` and under `consent` unless each that decides, the
table's entry and the user's line, says `flows=any`. A mapper has no entry, so there it is the user's line alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from agent_worker.identity.bindings import Binding, Bindings
from agent_worker.identity.consent import PLACE, Consent, ConsentLine, matches
from agent_worker.identity.facts import RequestRefused, RunFacts, request_hash
from agent_worker.identity.limits import NO_LIMITS, Limits
from agent_worker.identity.mapping import Mapped


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """The site's policy.

    Args:
        kind: `single-user`, or `owner`; the module says what each trusts.
        account: The account of single-user; nobody else's run is it.
        consent: Whether the user's own file must allow a run too.
    """

    kind: Literal["single-user", "owner"] = "single-user"
    account: str | None = None
    consent: bool = False

    def __post_init__(self) -> None:
        if (self.kind == "single-user") != (self.account is not None):
            raise ValueError("single-user needs an account, and owner has none")

    @property
    def name(self) -> str:
        """`single-user`, `owner`, `single-user+consent` or `owner+consent`."""
        return f"{self.kind}+consent" if self.consent else self.kind


@dataclass(frozen=True, slots=True)
class Allowed:
    """The run may go on.

    Args:
        account: As whom.
        proof: By what, in a few words.
        limits: What the user's line limits; to be checked again with the rendered script (`limits.exceeded`).
    """

    account: str
    proof: str
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class NeedsConsent:
    """The run is this account's, and its user has not allowed it.

    Args:
        account: As whom.
        command: What the user calls to allow it.
        why: What is missing.
        proof: By what the run is this account's.
    """

    account: str
    command: str
    why: str
    proof: str


@dataclass(frozen=True, slots=True)
class Denied:
    """Nobody's run, or none that may be.

    Args:
        reason: Why not.
        hint: What helps; empty where nothing does.
        account: Whose run it would have been, where that was known already.
        proof: By what.
    """

    reason: str
    hint: str
    account: str | None = None
    proof: str | None = None


Decision = Allowed | NeedsConsent | Denied


def owner_of(facts: RunFacts, policy: IdentityPolicy, bindings: Bindings, mapped: Mapped | None) -> Allowed | Denied:
    """Whose run it is, before the user is asked: what a worker needs in order to read the user's file.

    Args:
        facts: The run.
        policy: The site's policy.
        bindings: The table; single-user looks at none.
        mapped: What the site's mapper says of the run's creator; None when it knows nobody, or there is none.
    """
    if policy.kind == "single-user":
        assert policy.account is not None
        return Allowed(policy.account, "single-user")
    entries = bindings.of_run(facts)
    if entries:
        return _by_binding(facts, entries)
    if mapped is None:
        return Denied(
            "nobody is known whose run this is: no entry of the site's table fits it",
            "the site's administrator binds its deployment: `jobbergate-flows worker bind`",
        )
    if facts.kind == "flow" and not policy.consent:
        return _flows_are_off("the site's table")
    return Allowed(mapped.account, mapped.proof)


def decide(
    facts: RunFacts,
    policy: IdentityPolicy,
    bindings: Bindings,
    mapped: Mapped | None,
    consent: Consent,
    now: datetime,
) -> Decision:
    """Whether a run may go on, and as whom.

    Args:
        facts, policy, bindings, mapped: as for `owner_of`.
        consent: The file of the user whose run it is; looked at only where the policy wants it.
        now: The time, with its zone.
    """
    return consented(facts, policy, owner_of(facts, policy, bindings, mapped), consent, now)


def consented(
    facts: RunFacts, policy: IdentityPolicy, owner: Allowed | Denied, consent: Consent, now: datetime
) -> Decision:
    """Whether a run whose owner is known may go on: see `decide`.

    Args:
        owner: Whose run it is, and by what.
    """
    if isinstance(owner, Denied) or not policy.consent:
        return owner
    try:
        request_hash(facts)
    except RequestRefused as error:
        return Denied(error.message, error.hint or "", owner.account, owner.proof)
    about = [line for line in consent.lines if line.names(facts)]
    reasons = []
    for line in about:
        reason = matches(line, facts, now)
        if reason is None:
            return Allowed(owner.account, f"{owner.proof}, {_proof(line)}", line.limits)
        reasons.append(f"line {line.number}: {reason}")
    if not about:
        reasons.append(f"no line of ~/{PLACE} names its deployment")
    reasons += [f"{problem.where} cannot be read: {problem.message}" for problem in consent.problems]
    return NeedsConsent(
        owner.account, f"jobbergate-flows consent add --run {facts.flow_run_id}", _few(reasons), owner.proof
    )


def _by_binding(facts: RunFacts, entries: Sequence[Binding]) -> Allowed | Denied:
    first = entries[0]
    if facts.kind == "flow":
        # Of two digests of one deployment, the entries may both say it: then they must agree on the account.
        allowing = [entry for entry in entries if entry.any_flow]
        accounts = {entry.account for entry in allowing}
        if len(accounts) > 1:
            return Denied(
                f"the site's table names several accounts for it: {', '.join(sorted(accounts))}",
                "the site's administrator leaves one of them with flows: any",
            )
        return Allowed(allowing[0].account, allowing[0].proof) if allowing else _flows_are_off(first.proof)
    if first.selector != "deployment":
        return Allowed(first.account, first.proof)
    for entry in entries:
        if entry.application is not None and entry.application == facts.application:
            return Allowed(entry.account, entry.proof)
    known = ", ".join(entry.application or "ordinary flows" for entry in entries)
    return Denied(
        f"the deployment runs application {facts.application}, and the site's table allows it {known}",
        "deploy that application again, or the site's administrator binds the new one: `jobbergate-flows worker bind`",
    )


def _flows_are_off(what: str) -> Denied:
    return Denied(
        f"it is an ordinary flow, whose code nobody has pinned, and {what} does not say flows: any",
        "deploy it as an application, or the administrator binds it: `jobbergate-flows worker bind --flows-any`",
    )


def _proof(line: ConsentLine) -> str:
    if line.any_flow and line.application is None:
        what = "flows=any"
    else:
        what = "answers=any" if line.any_answers else "this request"
    return f"consent line {line.number} ({what})"


def _few(reasons: Sequence[str]) -> str:
    shown = reasons[:3]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(shown) + more
