"""Asks for the grid of a parameter study."""

from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase
from jobbergate_cli.subapps.applications.questions import Integer, List


class JobbergateApplication(JobbergateApplicationBase):
    def mainflow(self, data):
        return [
            Integer("damping_points", "Points of the grid along the damping", minval=1, maxval=200, default=24),
            Integer("stiffness_points", "Points of the grid along the stiffness", minval=1, maxval=200, default=10),
            Integer("duration", "Simulated time of each point in seconds", minval=1, maxval=600, default=40),
            List(
                "steps_per_second",
                "Integration steps per simulated second",
                choices=[("coarse (200)", 200), ("fine (1000)", 1000), ("very fine (5000)", 5000)],
                default=1000,
            ),
            Integer("cpus", "Processes at once", minval=1, maxval=64, default=1),
        ]
