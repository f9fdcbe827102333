"""What a job's metrics cost: reading a million points from a real InfluxDB, and drawing them.

Run on an idle machine from the repository's folder, where Debian's `influxdb` is installed:

    .venv/bin/python -m benchmarks.metrics --points 1000000

A point is a line that Slurm writes: in its usual schema one measurement of a sample, ten for a sample; with `--grouped`
(Slurm 26.05's `grouped_fields`) a whole sample. It prints, for reading, choosing what is drawn, and drawing apart:
seconds, how many of them this side worked (reading also waits for the database), and the peak of resident memory of the
process that does it. That of reading has all imported before it begins to count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from tests.cluster.influxdb import DATABASE, InfluxServer

NAMES = (
    *("CPUFrequency", "CPUTime", "CPUUtilization", "GPUMemMB", "GPUUtilization"),
    *("Pages", "RSS", "ReadMB", "VMSize", "WriteMB"),
)
START = 1_790_000_000
INTERVAL = 30
_LINES = 20_000
_DRAW = """
import sys, time
from benchmarks.metrics import _peak
from jobbergate_flows.metrics.drawing import main
main()
print(f"({time.process_time():.2f} s worked); peak of its process {_peak():.0f} MiB", file=sys.stderr)
"""


def main(points: int, hosts: int, tasks: int, grouped: bool) -> None:
    """Write, measure and print."""
    with InfluxServer() as server:
        samples = points // (1 if grouped else len(NAMES)) // (hosts * tasks)
        began = time.monotonic()
        written = write_points(server, samples, hosts, tasks, grouped)
        print(f"{written} points of {hosts} hosts with {tasks} tasks, written in {time.monotonic() - began:.1f} s")
        for what in ("read", "draw"):
            # In a process of its own: the peak of memory is one of a whole process.
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.metrics", "--measure", what, server.url, str(samples)],
                capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(done.stderr)
            print(done.stdout, end="")


def measure(what: str, url: str, samples: int) -> None:
    """Read, or read and draw, and print what that cost."""
    from jobbergate_flows.metrics.drawing import draw
    from jobbergate_flows.metrics.influxql import InfluxQLReader
    from jobbergate_flows.metrics.plots import plots
    from jobbergate_flows.slurm.steps import Allocation

    since = datetime.fromtimestamp(START, UTC)
    until = since + timedelta(seconds=INTERVAL * samples)
    before, began, worked = _peak(), time.monotonic(), time.process_time()
    metrics = asyncio.run(InfluxQLReader(url, DATABASE).read("7", since, until))
    seconds, worked = time.monotonic() - began, time.process_time() - worked
    if what == "read":
        values = metrics.values.nbytes / 2**20
        print(
            f"read:    {seconds:5.2f} s ({worked:.2f} s worked) for {len(metrics)} rows; peak {_peak():.0f} MiB, "
            f"before it {before:.0f} MiB, the rows are {values:.0f} MiB"
        )
        return
    after, began, worked = _peak(), time.monotonic(), time.process_time()
    made = plots(metrics, [Allocation("7", "7", since, until, 10, 100, 100 << 30, 10)])
    worked = time.process_time() - worked
    seconds = time.monotonic() - began
    print(f"prepare: {seconds:5.2f} s ({worked:.2f} s worked); peak {_peak():.0f} MiB, before it {after:.0f} MiB")
    began = time.monotonic()
    svgs = draw(made)
    seconds, largest = time.monotonic() - began, max(map(len, svgs)) / 1000
    request = json.dumps({"zone": None, "plots": [asdict(plot) for plot in made]})
    again = subprocess.run([sys.executable, "-c", _DRAW], input=request, capture_output=True, text=True, check=True)
    print(f"draw:    {seconds:5.2f} s {again.stderr.strip()}; {len(svgs)} plots of at most {largest:.0f} kB")


def _peak() -> float:
    """The peak of this process's resident memory in MiB; what getrusage says of it is inherited from its parent."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def write_points(server: InfluxServer, samples: int, hosts: int, tasks: int, grouped: bool) -> int:
    random = Random(1)
    lines: list[str] = []
    written = 0
    for host in range(hosts):
        for task in range(tasks):
            for sample in range(samples):
                numbers = {name: random.randrange(1, 10**6) for name in NAMES}
                when = START + sample * INTERVAL
                if grouped:
                    fields = ",".join(f"{name}={number}" for name, number in numbers.items())
                    lines.append(f"task,host=node{host},job=7,step=0,task={task} {fields} {when}")
                else:
                    tags = f"job=7,step=0,task={task},host=node{host}"
                    lines += [f"{name},{tags} value={number} {when}" for name, number in numbers.items()]
                if len(lines) >= _LINES:
                    server.write("\n".join(lines))
                    written += len(lines)
                    lines = []
    if lines:
        server.write("\n".join(lines))
    return written + len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000, help="how many points are written and read")
    parser.add_argument("--hosts", type=int, default=10, help="of how many hosts")
    parser.add_argument("--tasks", type=int, default=10, help="with how many tasks each")
    parser.add_argument("--grouped", action="store_true", help="write a sample as one point")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "URL", "SAMPLES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], given.measure[1], int(given.measure[2]))
    else:
        main(given.points, given.hosts, given.tasks, given.grouped)
