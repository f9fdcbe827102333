"""Asks for the problem and the number of tasks, with the imports of older Jobbergate versions."""

from jobbergate_cli import appform
from jobbergate_cli.application_base import JobbergateApplicationBase


class JobbergateApplication(JobbergateApplicationBase):
    def mainflow(self, data):
        return [
            appform.List(
                variablename="limit",
                message="Count the primes below",
                choices=[
                    ("a million", 1_000_000),
                    ("ten million", 10_000_000),
                    ("a hundred million", 100_000_000),
                ],
                default=10_000_000,
            ),
            appform.Integer(variablename="ntasks", message="Number of tasks", minval=1, maxval=64, default=2),
            appform.Text(variablename="job_script_name", message="Name of the job", default="count-primes"),
        ]
