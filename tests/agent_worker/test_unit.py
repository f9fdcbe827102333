"""What the worker's systemd unit allows, tried without systemd: its options are set by other means, and sudo starts a
deputy under them."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from agent_worker.unit import NOT_OVER_HOMES, NOT_WITH_SUDO, unit_text
from tests.cluster.accounts import WORKER, Accounts

# They say what is started, where and when; not what it may do.
NO_LIMITS = {
    "Environment", "EnvironmentFile", "ExecStart", "KillMode", "Restart", "RestartSec", "StateDirectory",
    "StateDirectoryMode", "WorkingDirectory",
}  # fmt: skip
# Containers, in which these tests run, mostly have no keys of the kernel's.
NOT_TRIED = {"KeyringMode"}
# What root does in a view of the file system of its own, before it becomes the worker.
STEPS = {
    ("DevicePolicy", "closed"): """
        mount -t tmpfs -o mode=755 devices "$FOLDER"
        for name in null zero full random urandom tty ptmx; do
            touch "$FOLDER/$name"; mount --bind "/dev/$name" "$FOLDER/$name"
        done
        mkdir "$FOLDER/pts"; mount --bind /dev/pts "$FOLDER/pts"
        mount --rbind "$FOLDER" /dev
        """,
    # Not /tmp itself: the tests' deputy is installed below.
    ("PrivateTmp", "yes"): "mount -t tmpfs -o mode=1777 private /var/tmp",
    ("ProtectHome", "tmpfs"): "mount -t tmpfs -o mode=755 homes /home",
    ("ProtectSystem", "strict"): "mount -o remount,bind,ro /",
    ("ReadOnlyPaths", "/home"): "mount --bind /home /home; mount -o remount,bind,ro /home",
    ("UMask", "0077"): "umask 0077",
}
LATER = {"AmbientCapabilities", "CapabilityBoundingSet", "NoNewPrivileges", "TasksMax", "User"}


def limits_of_the_unit() -> dict[str, str]:
    unit = unit_text(account=WORKER, pool="slurm", prefix="/opt/jobbergate-flows", mode="sudo")
    service = unit.partition("[Service]\n")[2].partition("\n[")[0]
    lines = [line.partition("=") for line in service.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in lines if name not in NO_LIMITS | NOT_TRIED}


def started(accounts: Accounts, limits: Mapping[str, str], *requests: Mapping[str, Any]) -> Any:
    """Have sudo start alice's deputy under these limits, and ask it: its greeting and answers, or what was said."""
    steps = [STEPS[name, value] for name, value in limits.items() if name not in LATER]
    capabilities = ",".join(["-all", *(f"+{name}" for name in _capabilities(limits["CapabilityBoundingSet"]))])
    ambient = ",".join(["-all", *(f"+{name}" for name in _capabilities(limits["AmbientCapabilities"]))])
    account = limits["User"]
    as_worker = [
        "prlimit", f"--nproc={limits['TasksMax']}",
        "setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups", "--inh-caps=-all",
        f"--ambient-caps={ambient}", f"--bounding-set={capabilities}",
        *(["--no-new-privs"] if limits.get("NoNewPrivileges") == "yes" else []),
    ]  # fmt: skip
    script = "\n".join(["set -e", *steps, 'exec "$@"'])
    folder = accounts.folder / "devices"
    folder.mkdir(exist_ok=True)
    lines = [{"hello": {}}, *({"id": number, **request} for number, request in enumerate(requests))]
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh",
         *as_worker, "sudo", "-n", "-u", "alice", "--", str(accounts.deputy)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        env={"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "FOLDER": str(folder)},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
            process.stdin.flush()
        # What it has not begun when its input ends, it does not begin.
        said = [json.loads(line) for line in itertools.islice(process.stdout, len(lines))]
        _, complaints = process.communicate(timeout=60)
    assert bool(said) is (complaints == ""), complaints
    return (said[0], *sorted(said[1:], key=lambda reply: int(reply["id"]))) if said else complaints


def _capabilities(value: str) -> list[str]:
    return [name.removeprefix("CAP_").lower() for name in value.split()]


def write(directory: str) -> dict[str, Any]:
    return {"do": "write_files", "directory": directory, "files": {"a": "x"}, "ours": {}, "in_place": False}


def test_under_the_units_limits_sudo_starts_a_deputy_that_acts_as_its_user(accounts: Accounts) -> None:
    shared = accounts.folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)

    greeting, home, written = started(accounts, limits_of_the_unit(), {"do": "home"}, write(f"{shared}/run"))

    assert greeting["user"] == "alice"
    assert home["ok"] == {"home": "/home/alice"}
    assert "ok" in written
    assert (shared / "run" / "a").owner() == "alice"


def test_no_new_privileges_would_be_too_much(accounts: Accounts) -> None:
    assert "NoNewPrivileges" in NOT_WITH_SUDO

    assert "no new privileges" in started(accounts, {**limits_of_the_unit(), "NoNewPrivileges": "yes"})


@pytest.mark.parametrize("capability", ["CAP_SETUID", "CAP_SETGID"])
def test_fewer_capabilities_would_be_too_few(accounts: Accounts, capability: str) -> None:
    given = limits_of_the_unit()
    fewer = given["CapabilityBoundingSet"].replace(capability, "")

    assert isinstance(started(accounts, {**given, "CapabilityBoundingSet": fewer}), str)


@pytest.mark.parametrize(
    ("option", "value", "place"),
    [("ProtectSystem", "strict", "/home/alice"), ("ReadOnlyPaths", "/home", "/home/alice"),
     ("ProtectHome", "tmpfs", "/home/alice"), ("PrivateTmp", "yes", "/var/tmp")],
)  # fmt: skip
def test_a_view_of_its_own_would_take_the_users_theirs(accounts: Accounts, option: str, value: str, place: str) -> None:
    assert option in NOT_OVER_HOMES
    base = accounts.run_as("alice", "mktemp", "-d", "-p", place).strip()
    limits = limits_of_the_unit()
    try:
        _, seen = started(accounts, limits, write(f"{base}/run"))
        _, taken = started(accounts, {**limits, option: value}, write(f"{base}/another"))
    finally:
        shutil.rmtree(base)

    assert "ok" in seen
    assert taken["error"]["kind"] == "DirectoryRefused"
