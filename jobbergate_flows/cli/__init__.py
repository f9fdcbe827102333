"""The command line `jobbergate-flows`.

Exit codes:
    0: It worked; a job that was followed is Completed.
    1: The job or run failed, or Slurm refused it.
    2: Usage: unknown commands and options, wrong values of options.
    3: Bad input: an application, answers, a directory, a job that is not known; what Jobbergate refuses.
    4: The cluster, the Prefect server, the ledger's database or Jobbergate is unreachable, or `cluster check` found
        something amiss.
    70: An error of this program itself.
    130: Interrupted.

Results go to standard output. Errors, states and progress go to standard error; an error is one line and a hint, with a
traceback only after `jobbergate-flows --debug`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line with this process's arguments, and exit."""
    from jobbergate_flows.cli.root import run

    sys.exit(run())
