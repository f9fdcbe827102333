"""Asks which files to handle; each becomes a task of a job array."""

from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase
from jobbergate_cli.subapps.applications.questions import Checkbox, Confirm, Integer, List

STATIONS = ["harbour", "island", "summit", "valley"]


class JobbergateApplication(JobbergateApplicationBase):
    def mainflow(self, data):
        data["nextworkflow"] = "array"
        return [
            Checkbox("stations", "Stations whose files are handled", choices=STATIONS, default=STATIONS),
            List(
                "column",
                "Quantity",
                choices=[
                    ("temperature in °C", "temperature"),
                    ("pressure in hPa", "pressure"),
                    ("wind in m/s", "wind"),
                ],
                default="temperature",
            ),
            Confirm("fail_on_missing_column", "Fail where a file lacks the quantity?", default=True),
        ]

    def array(self, data):
        stations = data["stations"]
        if not stations:
            raise ValueError("no station is chosen")
        return [
            Integer(
                "at_once",
                "Tasks at once",
                minval=1,
                maxval=len(stations),
                default=len(stations),
                ignore=len(stations) == 1,
            )
        ]
