"""The worker's sessions with its cluster: one for each account that it acts for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from jobbergate_flows.slurm.accounts import AccountRefused
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.deputy_door import DeputyDoor, OwnAccount
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.jobs import SlurmJob
from jobbergate_flows.slurm.ledger import SubmissionStatus
from jobbergate_flows.slurm.session import ClusterSession


class AccountSessions:
    """Sessions that share the worker's own ledger and tracker, and act through their user's deputy.

    Args:
        own: The worker's own session; it watches for all.
        open_door: Makes the door to an account; None where the worker acts as its own account only.
        slurm_conf: Path of slurm.conf where it is not the system's.
    """

    def __init__(
        self, own: ClusterSession, open_door: Callable[[str], DeputyDoor] | None = None, slurm_conf: str | None = None
    ) -> None:
        self.own = own
        self._open_door = open_door
        self._slurm_conf = slurm_conf
        # One for all: it has threads of its own.
        self._watching = OwnAccountDoor()
        self._doors: dict[str, DeputyDoor] = {}
        self._sessions: dict[str, ClusterSession] = {}

    def of(self, account: str) -> ClusterSession:
        """The session that acts as an account.

        Raises:
            AccountRefused: It is another one than the worker's own, which is all that this worker acts for.
        """
        if self._open_door is None:
            if account == self.own.cluster.user:
                return self.own
            raise AccountRefused(
                f"this worker acts as {self.own.cluster.user} only",
                where=account,
                hint="let it act for others: its setting `acting`",
            )
        if account not in self._sessions:
            door = self._door(account)
            cluster = CommandCluster(self.own.cluster.name, door, watching=self._watching, slurm_conf=self._slurm_conf)
            self._sessions[account] = ClusterSession(
                cluster, self.own.ledger, tracker=self.own.tracker, serve=door.render, home=door.home
            )
        return self._sessions[account]

    async def of_flow_run(self, flow_run_id: str) -> ClusterSession:
        """The session of the account that a flow run's jobs belong to; the worker's own where it has none yet."""
        rows = await asyncio.to_thread(self.own.ledger.of_flow_run, flow_run_id)
        return self.of(rows[-1].user) if rows else self.own

    async def with_job(self, flow_run_id: str) -> tuple[ClusterSession, SlurmJob] | None:
        """A flow run's job whose end was not told yet, and the session of its account; None where it has none."""
        for row in await asyncio.to_thread(self.own.ledger.of_flow_run, flow_run_id):
            submitted = row.status is SubmissionStatus.SUBMITTED
            if row.job is not None and (submitted or (row.status is SubmissionStatus.FINAL and not row.told)):
                return self.of(row.user), row.job
        return None

    async def read_consent(self, account: str) -> str | None:
        """The text of the user's file of authorized deployments; None when there is none.

        Raises:
            ConsentRefused: Somebody else than the user could have written it.
            AccountRefused, ClusterUnreachable
        """
        return await self._door(account).read_consent()

    async def close(self) -> None:
        """End the deputies."""
        await asyncio.gather(*(door.close() for door in self._doors.values()))

    def _door(self, account: str) -> DeputyDoor:
        if account not in self._doors:
            if self._open_door is not None:
                self._doors[account] = self._open_door(account)
            else:
                self.of(account)
                self._doors[account] = DeputyDoor(account, OwnAccount())
        return self._doors[account]
