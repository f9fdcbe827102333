"""The accounts that tests make on this machine, where several test runs may be under way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cluster.accounts import USERS, WORKER, Accounts
from tests.cluster.waiting import wait_until

ROOT = Path(__file__).parents[2]
ANOTHER_RUN = """
from tests.cluster.accounts import Accounts
with Accounts() as accounts:
    print(accounts.folder, flush=True)
    input()
"""


def test_another_test_run_shares_them_and_its_death_takes_them_from_nobody(accounts: Accounts) -> None:
    command = [sys.executable, "-c", ANOTHER_RUN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as another:
        assert another.stdout is not None
        folder = Path(another.stdout.readline().strip())
        another.kill()
    # Its guard removes the folder last.
    wait_until(lambda: not folder.exists(), 30, "the other run's guard to have ended")
    for name in (*USERS, WORKER):
        assert accounts.run_as(name, "id", "-un").strip() == name
