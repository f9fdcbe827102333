"""What acting as others costs: submissions a second through deputies, beside plain `sudo sbatch` and plain `sbatch`.

Run as root on Debian from the repository's folder, on an idle machine:

    .venv/bin/python -m benchmarks.submissions --number 60

It makes the accounts of the tests (alice, bob and carol), starts a real Slurm, and submits as many jobs in each way,
three at a time: as root itself, by sudo as three users, and through the three users' deputies, which sudo starts once
each, with Slurm asked whose each job is. It prints each way's submissions a second, and what they are of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable

from jobbergate_flows.slurm.cluster import SubmitRequest
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.door import OwnAccountDoor
from tests.cluster.accounts import USERS, Accounts
from tests.cluster.slurm import SlurmCluster

SCRIPT = "#!/bin/sh\ntrue\n"


async def main(number: int) -> None:
    """Measure and print."""
    with Accounts() as accounts, SlurmCluster() as slurm:
        accounts.admit(slurm)
        os.environ["SLURM_CONF"] = str(slurm.conf)
        conf = str(slurm.conf)
        doors = {user: accounts.door(user, accounts.sudo, slurm_conf=conf) for user in USERS}
        clusters = {
            user: CommandCluster(slurm.name, door, watching=OwnAccountDoor(), slurm_conf=conf)
            for user, door in doors.items()
        }

        async def plain(_user: str, index: int) -> None:
            await _sbatch(("sbatch",), index)

        async def by_sudo(user: str, index: int) -> None:
            await _sbatch(("sudo", "-n", "-u", user, "--", "env", f"SLURM_CONF={conf}", "sbatch"), index)

        async def by_deputy(user: str, index: int) -> None:
            name = f"measured-{user}-{index}"
            await clusters[user].submit(SubmitRequest(SCRIPT, ("--hold", "--output=/dev/null"), name, name, "/tmp"))

        try:
            first = await _rate(plain, number)
            print(f"plain sbatch:        {first:6.1f} submissions/s")
            for what, submit in (("sudo sbatch", by_sudo), ("through deputies", by_deputy)):
                rate = await _rate(submit, number)
                print(f"{what + ':':20} {rate:6.1f} submissions/s, {rate / first:.2f} of plain sbatch's")
        finally:
            for door in doors.values():
                await door.close()


async def _rate(submit: Callable[[str, int], Awaitable[None]], number: int) -> float:
    async def some(user: str) -> None:
        for index in range(number // len(USERS)):
            await submit(user, index)

    for user in USERS:
        await submit(user, number)
    began = time.monotonic()
    await asyncio.gather(*(some(user) for user in USERS))
    return number / (time.monotonic() - began)


async def _sbatch(command: tuple[str, ...], index: int) -> None:
    options = ("--hold", "--output=/dev/null", "--chdir=/tmp", f"--job-name=measured-{index}")
    process = await asyncio.create_subprocess_exec(
        *command, *options, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    await process.communicate(SCRIPT.encode())
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} exited with {process.returncode}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60, help="how many jobs are submitted in each way")
    asyncio.run(main(parser.parse_args().number))
