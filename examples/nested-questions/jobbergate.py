"""Asks for a picture: its region, quality, colours and caption."""

from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase
from jobbergate_cli.subapps.applications.questions import (
    BooleanList,
    Confirm,
    Const,
    Integer,
    List,
    Text,
)

REGIONS = {
    "whole": (-0.6, 0.0, 3.0),
    "seahorses": (-0.745, 0.113, 0.02),
    "elephants": (0.282, 0.01, 0.04),
}


class JobbergateApplication(JobbergateApplicationBase):
    def mainflow(self, data):
        data["nextworkflow"] = "region"
        return [
            Text("title", "Title of the picture", default="mandelbrot"),
            List(
                "region",
                "Region",
                choices=[
                    ("The whole set", "whole"),
                    ("Valley of the seahorses", "seahorses"),
                    ("Valley of the elephants", "elephants"),
                    ("A region of my own", "own"),
                ],
                default="whole",
            ),
            List("quality", "Quality", choices=["draft", "final"], default="draft"),
            Integer("width", "Width in pixels", minval=16, maxval=2000, default=160),
            Integer(
                "samples",
                "Samples per pixel and direction",
                minval=1,
                maxval=4,
                default=lambda answers: 2 if answers.get("quality") == "final" else 1,
                ignore=lambda answers: answers.get("quality") != "final",
            ),
            BooleanList(
                "colour",
                "In colour?",
                default=False,
                whentrue=[
                    List("palette", "Palette", choices=["fire", "ice"], default="fire"),
                    Integer("bands", "Number of colour bands", minval=2, maxval=64, default=16),
                    BooleanList(
                        "frame",
                        "With a frame?",
                        default=False,
                        whentrue=[
                            Integer("frame_width", "Width of the frame in pixels", minval=1, maxval=50, default=4)
                        ],
                    ),
                ],
                whenfalse=[Confirm("invert", "White on black?", default=False)],
            ),
            Const("format", default="ppm"),
        ]

    def region(self, data):
        data["nextworkflow"] = "effort"
        if data["region"] != "own":
            data["centre_x"], data["centre_y"], data["extent"] = REGIONS[data["region"]]
            return []
        return [
            Text("centre_x", "Real part of the centre", default="-0.5"),
            Text("centre_y", "Imaginary part of the centre", default="0.0"),
            Text("extent", "Extent of the region", default="2.5"),
        ]

    def effort(self, data):
        for name in ("centre_x", "centre_y", "extent"):
            data[name] = float(data[name])
        iterations = 100 if data["extent"] > 1 else 400
        data["height"] = data["width"] * 3 // 4
        data["minutes"] = 1 + data["width"] * data["height"] * data["samples"] ** 2 * iterations // 500_000_000
        return [
            Integer(
                "iterations",
                "Most iterations for a point of {region}",
                minval=10,
                maxval=10_000,
                default=iterations,
            )
        ]
