"""The services that the tests start are real, can be disturbed, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.cluster.prefect_server import PrefectServer
from tests.cluster.service import Service, ServiceFailed
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until, wait_until

ROOT = Path(__file__).parents[2]


def test_a_job_runs_and_accounting_tells_its_end(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = slurm_cluster.run(
        *("sbatch", "--parsable", f"--output={output}", "--comment=why"),
        stdin="#!/bin/sh\necho hello from $SLURM_JOB_ID\n",
    ).strip()

    def told() -> str:
        columns = "State,Account,User,Partition,Comment"
        return slurm_cluster.run("sacct", "-X", "-n", "-P", "-j", job, "-o", columns).strip()

    # The state comes first: for a moment the partition is empty.
    wait_until(lambda: told() == "COMPLETED|test|root|debug|why", 60, "the job's end in accounting")
    assert output.read_text() == f"hello from {job}\n"


def test_only_known_accounts_may_submit(slurm_cluster: SlurmCluster) -> None:
    with pytest.raises(ServiceFailed, match="Invalid account"):
        slurm_cluster.run("sbatch", "--account=nobody", "--wrap=true")


def test_a_paused_controller_answers_ambiguously(slurm_cluster: SlurmCluster) -> None:
    slurm_cluster.pause("slurmctld")
    try:
        with pytest.raises(ServiceFailed, match="Socket timed out on send/recv"):
            slurm_cluster.run("sbatch", "--job-name=ambiguous", "--wrap=true")
    finally:
        slurm_cluster.resume("slurmctld")
    # The job is there all the same.
    wait_until(lambda: slurm_cluster.run("squeue", "-h", "-t", "all", "--name=ambiguous", "-o", "%i"), 60, "the job")


def test_a_service_goes_on_where_it_was_stopped(slurm_cluster: SlurmCluster) -> None:
    job = slurm_cluster.run("sbatch", "--parsable", "--hold", "--wrap=true").strip()
    slurm_cluster.stop_service("slurmctld")
    with pytest.raises(ServiceFailed, match="Unable to contact slurm controller"):
        slurm_cluster.run("squeue")
    slurm_cluster.start_service("slurmctld")
    assert slurm_cluster.run("squeue", "-h", "-j", job, "-o", "%T").strip() == "PENDING"
    slurm_cluster.run("scancel", job)


def test_what_does_not_come_up_says_why(tmp_path: Path) -> None:
    service = Service("liar", ["/bin/sh", "-c", "echo no such database; exit 3"], tmp_path / "log", {})
    service.start()
    with pytest.raises(ServiceFailed, match=r"liar ended with exit code 3; its log ends:\nno such database"):
        service.wait_ready(lambda: False)
    service.stop()


@pytest.mark.slurm
def test_nothing_is_left_of_a_slurm_whose_owner_was_killed(tmp_path: Path) -> None:
    said = tmp_path / "said"
    program = (
        "import sys, pathlib, signal\n"
        "from tests.cluster.slurm import SlurmCluster\n"
        "cluster = SlurmCluster('doomed')\n"
        "cluster.start()\n"
        "cluster.run('sbatch', '--output=/dev/null', '--wrap=sleep 1000')\n"
        "pathlib.Path(sys.argv[1]).write_text(str(cluster.folder))\n"
        "signal.pause()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(said)], cwd=ROOT)
    wait_until(lambda: said.exists() and said.read_text(), 180, "a Slurm of somebody else's")
    folder = said.read_text()
    wait_until(lambda: any("slurmstepd" in title for title in _processes(folder)), 60, "its job")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not _processes(folder) and not Path(folder).exists(), 60, "the end of everything")


@pytest.mark.slurm
def test_a_slurm_that_is_kept_lets_go_of_its_callers_pipe_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = [sys.executable, "-m", "tests.cluster", "--keep", "--", "echo", "ran"]
    try:
        # As a shell's pipe: `cat` ends when nobody holds the other side any more.
        subprocess.run(
            ["bash", "-c", 'set -o pipefail; "$@" 2>&1 | cat >"$0"', said, *command], cwd=ROOT, timeout=180, check=True
        )
        assert "\nran\n" in said.read_text()
        folder = re.findall(r"SLURM_CONF=(\S+)/slurm.conf", said.read_text())[0]
        assert any("slurmctld" in title for title in _processes(folder))
    finally:
        for guardian in re.findall(r"kill (\d+)", said.read_text()):
            os.kill(int(guardian), signal.SIGTERM)
    wait_until(lambda: not _processes(folder) and not Path(folder).exists(), 60, "the end of everything")


def test_a_prefect_server_pauses_and_keeps_its_database_when_it_starts_again() -> None:
    with PrefectServer() as server:
        assert b"<html" in _get(f"{server.ui_url}/dashboard")
        request = urllib.request.Request(
            f"{server.api_url}/variables/",
            data=b'{"name": "kept", "value": "yes"}',
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()
        server.pause()
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(f"{server.api_url}/health", timeout=1)
        server.resume()
        server.stop()
        server.start()
        assert b"yes" in _get(f"{server.api_url}/variables/name/kept")
    assert not server.folder.exists()


async def test_waiting_names_what_did_not_come() -> None:
    async def never() -> bool:
        return False

    with pytest.raises(TimeoutError, match="Godot"):
        await await_until(never, 0.2, "Godot")
    with pytest.raises(TimeoutError, match="Godot"):
        wait_until(lambda: False, 0.2, "Godot")


def _get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "text/html, application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def _processes(folder: str) -> list[str]:
    """The titles of all living processes that have to do with the Slurm of this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"SLURM_CONF={folder}/".encode() in environment and int(entry.name) != os.getpid():
            found.append(title)
    return found
