"""Two jobs in a row: the second is submitted when the first is Completed, and reads what it wrote.

Serve it, and it shows up in the Prefect UI with a form:

    python examples/chain_two_jobs.py

It is served, or runs on a process work pool, on a host that reaches the cluster. As a Slurm job it would hold a node
while it waits for its own jobs.
"""

from pathlib import Path

from prefect import flow

from jobbergate_flows.applications import JobScript
from jobbergate_flows.tasks import render_job_script, submit_job_script, wait_for_job

STUDY = Path(__file__).parent / "parameter-study"

BEST_POINT = """#!/bin/bash
#SBATCH --job-name=best-point
#SBATCH --time=5
set -euo pipefail
results={results}
head -n 1 "$results"
# Not `| head -n 1`: it would close the pipe while `sort` writes, which `pipefail` makes a failure.
tail -n +2 "$results" | sort --field-separator=, --key=3 --general-numeric-sort | awk 'NR == 1'
"""


@flow
def chain_two_jobs(directory: str = "~") -> str:
    """Run the parameter study, then a job that picks its best point.

    Args:
        directory: An existing directory of the cluster, below which both jobs get directories of their own.

    Returns:
        The directory of the second job.
    """
    study = submit_job_script(render_job_script(STUDY), directory=directory)
    wait_for_job(study)
    script = JobScript(name="best-point", text=BEST_POINT.format(results=f"{study.directory}/results.csv"))
    best = submit_job_script(script, directory=directory)
    wait_for_job(best)
    return best.directory


if __name__ == "__main__":
    chain_two_jobs.serve(name="chain-two-jobs")
