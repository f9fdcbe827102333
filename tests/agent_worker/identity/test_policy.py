"""What the policies decide."""

from __future__ import annotations

from typing import Any

import pytest

from agent_worker.identity.bindings import Bindings, make_binding
from agent_worker.identity.consent import Consent, parse
from agent_worker.identity.facts import RunFacts, request_hash
from agent_worker.identity.limits import NO_LIMITS
from agent_worker.identity.mapping import Mapped
from agent_worker.identity.policy import Allowed, Decision, Denied, IdentityPolicy, NeedsConsent, decide, owner_of
from tests.agent_worker.identity.runs import DEPLOYMENT, DIGEST, NAME, NOW, OTHER_DIGEST, a_run

SINGLE = IdentityPolicy("single-user", account="slurm-flows")
SINGLE_WITH_CONSENT = IdentityPolicy("single-user", account="slurm-flows", consent=True)
OWNER = IdentityPolicy("owner")
OWNER_WITH_CONSENT = IdentityPolicy("owner", consent=True)
ALICE_OF_CLOUD = Mapped("alice", "ldap: created_by id 7f9f")


def bound(*entries: dict[str, str]) -> Bindings:
    return Bindings(tuple(make_binding(entry, line=number) for number, entry in enumerate(entries, start=1)))


BOUND = bound({"deployment": NAME, "application": DIGEST, "account": "alice"})
FLOWS = bound({"deployment": NAME, "flows": "any", "account": "alice"})
POOL = bound({"pool": "slurm", "account": "carol"})


def decided(
    policy: IdentityPolicy,
    facts: RunFacts,
    bindings: Bindings = Bindings(),  # noqa: B008
    mapped: Mapped | None = None,
    consent: str = "",
) -> Decision:
    return decide(facts, policy, bindings, mapped, parse(consent), NOW)


class TestSingleUser:
    @pytest.mark.parametrize("kind", ["application", "flow"])
    def test_every_run_is_the_one_accounts(self, kind: str) -> None:
        assert decided(SINGLE, a_run(kind=kind), POOL, ALICE_OF_CLOUD) == Allowed("slurm-flows", "single-user")

    def test_it_needs_an_account(self) -> None:
        with pytest.raises(ValueError, match="account"):
            IdentityPolicy("single-user")
        with pytest.raises(ValueError, match="account"):
            IdentityPolicy("owner", account="alice")


class TestOwner:
    def test_a_bound_application_is_its_accounts(self) -> None:
        decision = decided(OWNER, a_run(), BOUND)
        assert decision == Allowed("alice", f"binding deployment={NAME} (line 1)", NO_LIMITS)

    def test_another_application_in_a_bound_deployment_is_nobodys(self) -> None:
        bindings = Bindings(BOUND.entries + POOL.entries)
        decision = decided(OWNER, a_run(application=OTHER_DIGEST), bindings, ALICE_OF_CLOUD)
        assert isinstance(decision, Denied)
        assert OTHER_DIGEST in decision.reason
        assert "worker bind" in decision.hint

    def test_a_run_that_names_no_application_is_nobodys(self) -> None:
        assert isinstance(decided(OWNER, a_run(application=None), BOUND), Denied)
        assert isinstance(decided(OWNER, a_run(application=None), FLOWS), Denied)

    def test_one_of_several_applications(self) -> None:
        both = bound(
            {"deployment": NAME, "application": DIGEST, "account": "alice"},
            {"deployment": NAME, "application": OTHER_DIGEST, "account": "bob"},
        )
        assert decided(OWNER, a_run(application=OTHER_DIGEST), both) == Allowed(
            "bob", f"binding deployment={NAME} (line 2)"
        )

    def test_what_no_entry_fits_is_nobodys(self) -> None:
        decision = decided(OWNER, a_run(work_pool="other"), POOL)
        assert isinstance(decision, Denied)
        assert "nobody" in decision.reason

    def test_the_mapper_is_asked_where_no_entry_fits(self) -> None:
        assert decided(OWNER, a_run(), Bindings(), ALICE_OF_CLOUD) == Allowed("alice", ALICE_OF_CLOUD.proof)
        assert decided(OWNER, a_run(), POOL, ALICE_OF_CLOUD) == Allowed("carol", "binding pool=slurm (line 1)")

    def test_ordinary_flows_are_off_until_the_entry_says_so(self) -> None:
        flow = a_run(kind="flow")
        for bindings in (BOUND, POOL, bound({"queue": "slurm/default", "account": "bob"})):
            decision = decided(OWNER, flow, bindings, ALICE_OF_CLOUD)
            assert isinstance(decision, Denied)
            assert "flows: any" in decision.reason
        assert isinstance(decided(OWNER, flow, Bindings(), ALICE_OF_CLOUD), Denied)
        assert decided(OWNER, flow, FLOWS) == Allowed("alice", f"binding deployment={NAME} (line 1)")
        assert isinstance(decided(OWNER, flow, bound({"pool": "slurm", "account": "carol", "flows": "any"})), Allowed)

    def test_an_entry_for_flows_lets_no_application_in(self) -> None:
        assert isinstance(decided(OWNER, a_run(), FLOWS), Denied)

    def test_entries_that_disagree_about_flows_let_nobody_in(self) -> None:
        both = bound(
            {"deployment": NAME, "application": DIGEST, "flows": "any", "account": "alice"},
            {"deployment": NAME, "flows": "any", "account": "bob"},
        )
        decision = decided(OWNER, a_run(kind="flow"), both)
        assert isinstance(decision, Denied)
        assert "alice, bob" in decision.reason


class TestConsent:
    EXACT = f"{DEPLOYMENT} {DIGEST} {request_hash(a_run())}\n"

    @pytest.mark.parametrize(
        ("policy", "account"), [(SINGLE_WITH_CONSENT, "slurm-flows"), (OWNER_WITH_CONSENT, "alice")]
    )
    def test_on_top_of_either(self, policy: IdentityPolicy, account: str) -> None:
        decision = decided(policy, a_run(), BOUND, consent=self.EXACT)
        assert isinstance(decision, Allowed)
        assert decision.account == account
        assert decision.proof.endswith("consent line 1 (this request)")

    def test_without_a_line_the_run_waits_for_one(self) -> None:
        decision = decided(OWNER_WITH_CONSENT, a_run(), BOUND)
        assert isinstance(decision, NeedsConsent)
        assert decision.account == "alice"
        assert decision.command == f"jobbergate-flows consent add --run {a_run().flow_run_id}"
        assert "names its deployment" in decision.why

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            ({"answers": {"steps": 10, "name": "$(id)"}}, "answers"),
            ({"directory": "/home/alice/.ssh"}, "directory"),
            ({"job_name": "x"}, "job name"),
            ({"resources": {}}, "resources"),
            ({"application": OTHER_DIGEST}, "bbbb"),
        ],
        ids=str,
    )
    def test_anything_else_than_what_was_allowed_waits(self, changed: dict[str, Any], says: str) -> None:
        bindings = bound({"pool": "slurm", "account": "alice"})
        decision = decided(OWNER_WITH_CONSENT, a_run(**changed), bindings, consent=self.EXACT)
        assert isinstance(decision, NeedsConsent)
        assert decision.why.startswith("line 1: ")
        assert says in decision.why

    def test_a_line_does_not_make_somebody_the_owner(self) -> None:
        assert isinstance(decided(OWNER_WITH_CONSENT, a_run(), Bindings(), consent=self.EXACT), Denied)
        changed = a_run(application=OTHER_DIGEST)
        text = f"{DEPLOYMENT} {OTHER_DIGEST} answers=any\n"
        assert isinstance(decided(OWNER_WITH_CONSENT, changed, BOUND, consent=text), Denied)

    def test_an_expired_line_is_none(self) -> None:
        text = f"{DEPLOYMENT} {DIGEST} answers=any,expires=2026-05-31\n"
        decision = decided(OWNER_WITH_CONSENT, a_run(), BOUND, consent=text)
        assert isinstance(decision, NeedsConsent)
        assert "expired" in decision.why

    def test_a_broken_line_is_told_and_allows_nothing(self) -> None:
        text = f"{DEPLOYMENT} {DIGEST} answers=any and more\n"
        decision = decided(OWNER_WITH_CONSENT, a_run(), BOUND, consent=text)
        assert isinstance(decision, NeedsConsent)
        assert "line 1 cannot be read" in decision.why

    def test_the_first_line_that_allows_it_counts(self) -> None:
        text = f"{DEPLOYMENT} {DIGEST} answers=any,max-nodes=1\n{NAME} {DIGEST} answers=any,max-nodes=2\n"
        decision = decided(OWNER_WITH_CONSENT, a_run(), BOUND, consent=text)
        assert isinstance(decision, Allowed)
        assert decision.proof.endswith("consent line 2 (answers=any)")
        assert decision.limits.nodes == 2

    def test_ordinary_flows_need_the_word_of_each(self) -> None:
        flow = a_run(kind="flow")
        line = f"{NAME} flows=any\n"
        assert isinstance(decided(OWNER_WITH_CONSENT, flow, FLOWS, consent=line), Allowed)
        assert isinstance(decided(OWNER_WITH_CONSENT, flow, FLOWS, consent=self.EXACT), NeedsConsent)
        assert isinstance(decided(OWNER_WITH_CONSENT, flow, BOUND, consent=line), Denied)
        assert isinstance(decided(OWNER_WITH_CONSENT, flow, Bindings(), ALICE_OF_CLOUD, line), Allowed)
        assert isinstance(decided(OWNER_WITH_CONSENT, flow, Bindings(), ALICE_OF_CLOUD), NeedsConsent)
        assert isinstance(decided(SINGLE_WITH_CONSENT, flow, consent=line), Allowed)
        assert isinstance(decided(SINGLE_WITH_CONSENT, flow), NeedsConsent)

    def test_a_request_that_nobody_can_consent_to_is_refused(self) -> None:
        text = f"{DEPLOYMENT} {DIGEST} answers=any\n"
        decision = decided(OWNER_WITH_CONSENT, a_run(answers={"a": float("nan")}), BOUND, consent=text)
        assert isinstance(decision, Denied)

    def test_without_the_policy_nobody_is_asked(self) -> None:
        assert isinstance(decided(OWNER, a_run(), BOUND), Allowed)
        assert decide(a_run(), OWNER, BOUND, None, Consent(), NOW) == owner_of(a_run(), OWNER, BOUND, None)

    def test_the_message_stays_short(self) -> None:
        text = "".join(f"{NAME} {DIGEST} answers=any,max-nodes=1 # {number}\n" for number in range(100))
        decision = decided(OWNER_WITH_CONSENT, a_run(), BOUND, consent=text)
        assert isinstance(decision, NeedsConsent)
        assert decision.why.endswith("and 97 more")
