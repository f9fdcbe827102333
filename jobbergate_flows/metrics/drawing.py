"""Plots as SVG, drawn by matplotlib in a process of its own.

matplotlib holds the interpreter for as long as it draws, and keeps its memory once imported: no worker has that in
its own process. A process is started for all plots of a job, and ends with them: nothing idles. Its SVG has text as
text, is the same for the same plot, and needs no script, so that it may stand in an `<img>`.

What is drawn lies on whatever the page has behind it. The colours have a contrast of 3 or more both to white and to the
darkest and lightest background of Prefect's dark theme, which is what WCAG asks of graphics.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobbergate_flows.metrics.errors import DrawingFailed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jobbergate_flows.metrics.plots import Plot

INK = "#828282"
"""Text, axes."""

COLOURS = ("#3584c4", "#cf6b0e", "#2f9462", "#b860ae", "#a98307", "#8f72d6", "#1592a0")
"""Of lines, in their order."""

LIMIT = "#e5484d"
"""What was requested."""

TIMEOUT = 60.0
"""Seconds after which a drawing process is killed."""

_SIZE = (7.6, 3.1)
# Seconds that an axis has at least: otherwise that of a single sample is of years.
_SHORTEST = 10
_FONTS = ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"]
# Not more processes at once, whoever asks: each takes a processor and some 100 MB.
_threads = ThreadPoolExecutor(2, thread_name_prefix="drawing")


async def adraw(plots: Sequence[Plot], *, zone: str | None = None, timeout: float = TIMEOUT) -> list[str]:
    """The plots as SVG texts, drawn in another process.

    Args:
        zone: The IANA name of the zone of the times, such as `Europe/Zurich`; otherwise this host's.
        timeout: Seconds after which the drawing is given up.

    Raises:
        DrawingFailed: It took too long, or failed; the message holds its last words.
    """
    return await asyncio.get_running_loop().run_in_executor(_threads, _drawn, plots, zone, timeout)


def draw(plots: Sequence[Plot], *, zone: str | None = None, timeout: float = TIMEOUT) -> list[str]:
    """See `adraw`."""
    return _threads.submit(_drawn, plots, zone, timeout).result()


def image(svg: str, text: str) -> str:
    """An SVG as an image of markdown.

    Args:
        text: What is shown to those who do not see it; one line.
    """
    words = re.sub(r"([\\\[\]])", r"\\\1", " ".join(text.split()))
    return f"![{words}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _drawn(plots: Sequence[Plot], zone: str | None, timeout: float) -> list[str]:
    if zone is not None:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise DrawingFailed(f"there is no time zone {zone!r}", hint="name one such as Europe/Zurich") from error
    if not plots:
        return []
    request = json.dumps({"zone": zone, "plots": [asdict(plot) for plot in plots]})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MPLBACKEND": "svg"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            input=request,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DrawingFailed(f"drawing took more than {timeout:g} s", hint="draw fewer plots, or allow more") from error
    except OSError as error:
        raise DrawingFailed(f"no process could be started: {error}", hint="see this host's limits") from error
    if done.returncode:
        words = " ".join(done.stderr.split())[-500:] or f"exit code {done.returncode}"
        raise DrawingFailed(f"drawing failed: {words}", hint="see whether matplotlib works here")
    svgs: list[str] = json.loads(done.stdout)
    return svgs


def main() -> None:
    """The drawing process: a request on standard input, a list of SVG texts on standard output."""
    request = json.load(sys.stdin)
    json.dump([_svg(plot, request["zone"]) for plot in request["plots"]], sys.stdout)


def _svg(plot: dict[str, Any], zone: str | None) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "jobbergate-flows",
            "font.family": "sans-serif",
            "font.sans-serif": _FONTS,
            "font.size": 10,
            # Names are users': a dollar sign is no formula.
            "text.parse_math": False,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "path.simplify": False,
        }
    )
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plot["title"], loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(plot["unit"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if plot["bars"]:
        _bars(axes, plot)
    else:
        _lines(axes, plot, zone)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            borderaxespad=0,
            frameon=False,
            fontsize=9,
            handlelength=1.4,
        )
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Title": plot["text"]})
    return _compact(file.getvalue())


def _lines(axes: Axes, plot: dict[str, Any], zone: str | None) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    where = _zone(zone)
    if band := plot["band"]:
        axes.fill_between(
            _days(band["times"]), _floats(band["low"]), _floats(band["high"]),
            step="post", color=INK, alpha=0.35, linewidth=0, label=band["label"],
        )  # fmt: skip
    for number, line in enumerate(plot["lines"]):
        if line["low"] is not None:
            axes.fill_between(
                _days(line["times"]), _floats(line["low"]), _floats(line["high"]),
                step="post", color=COLOURS[number % len(COLOURS)], alpha=0.25, linewidth=0,
            )  # fmt: skip
        axes.plot(
            _days(line["times"]), _floats(line["values"]), drawstyle="steps-post",
            color=COLOURS[number % len(COLOURS)], linewidth=1.6, label=_label(line["label"]),
            marker="o" if len(line["times"]) == 1 else None, markersize=4,
        )  # fmt: skip
    if plot["limit"] is not None:
        axes.axhline(plot["limit"], color=LIMIT, linewidth=1.4, linestyle=(0, (5, 3)), label=plot["limit_label"])
    axes.set_ylim(0, 1.05 * max(axes.dataLim.y1, plot["limit"] or 0) or 1)
    times = [time for drawn in [*plot["lines"], *filter(None, [plot["band"]])] for time in drawn["times"]]
    first, last = min(times), max(times)
    width = max(last - first, _SHORTEST)
    axes.set_xlim(*_days([(first + last) / 2 - 0.51 * width, (first + last) / 2 + 0.51 * width]))
    locator = AutoDateLocator(tz=where, minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=where, show_offset=False)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    begin = datetime.fromtimestamp(first, where)
    axes.set_xlabel(f"from {begin:%Y-%m-%d %H:%M}, times in {begin.tzname()}")


def _bars(axes: Axes, plot: dict[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    bars = plot["bars"]
    axes.stairs(bars["counts"], bars["edges"], fill=True, color=COLOURS[0], alpha=0.85)
    for number, (name, value) in enumerate(bars["quantiles"]):
        axes.axvline(value, color=COLOURS[1 + number], linewidth=1.6, label=f"{name}: {value:.3g} {plot['unit']}")
    if plot["limit"] is not None:
        axes.axvline(plot["limit"], color=LIMIT, linewidth=1.4, linestyle=(0, (5, 3)), label=plot["limit_label"])
    axes.set_xlim(0, 1.02 * max(bars["edges"][-1], plot["limit"] or 0))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(plot["unit"])
    axes.set_ylabel(f"number of {bars['what']}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _zone(name: str | None) -> tzinfo:
    if name is not None:
        return ZoneInfo(name)
    from dateutil.tz import tzlocal  # type: ignore[import-untyped]

    # Unlike that of astimezone, this zone has its summer time.
    local: tzinfo = tzlocal()
    return local


def _days(times: Sequence[float]) -> list[float]:
    """Times as matplotlib has them: days since the epoch."""
    return [time / 86400 for time in times]


def _floats(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _label(text: str) -> str:
    # Long names of hosts leave no room for the plot.
    return text if len(text) <= 32 else f"{text[:15]}…{text[-16:]}"


def _compact(svg: str) -> str:
    """Without a prologue, which an image does not need, and with a tenth of a point for matplotlib's millionth."""
    svg = svg[svg.index("<svg") :]
    return re.sub(r' (d|points)="([^"]*)"', lambda found: f' {found[1]}="{_rounded(found[2])}"', svg)


def _rounded(path: str) -> str:
    path = re.sub(r"-?[0-9]+\.[0-9]+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s+", " ", path).strip()


if __name__ == "__main__":
    main()
