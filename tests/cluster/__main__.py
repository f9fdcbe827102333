"""`python -m tests.cluster [--keep] -- COMMAND...`: run a command beside a real Slurm of its own; for scripts/demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.cluster.guard import guard
from tests.cluster.service import ServiceFailed
from tests.cluster.slurm import SlurmCluster, missing


def main(arguments: list[str]) -> int:
    keep = arguments[:1] == ["--keep"]
    command = arguments[arguments.index("--") + 1 :]
    if lacking := missing():
        print(f"Error: no real Slurm can be started here: {', '.join(lacking)} missing", file=sys.stderr)
        return 1
    # A SIGTERM before the command runs ends Slurm too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    cluster = SlurmCluster("demo")
    print(f"Starting a real Slurm in {cluster.folder}", flush=True)
    kept = False
    try:
        cluster.start()
        code = _run(command, os.environ | cluster.environment)
        kept = keep and code == 0
        if kept:
            print(f"Slurm stays up too.\n  use:    export SLURM_CONF={cluster.conf}\n  stop:   kill {guard.keep()}")
        return code
    except ServiceFailed as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    finally:
        if not kept:
            cluster.stop()
            print("Stopped Slurm, and removed its folder.")


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run it to its end, and return its exit code as a shell would; Slurm outlives it."""
    # It hears a Ctrl-C itself, and ends what it started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(command, env=environment, preexec_fn=_hear_interrupts)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(signal.SIGINT))
    code = process.wait()
    return code if code >= 0 else 128 - code


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
