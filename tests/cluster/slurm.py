"""A real Slurm on this machine, with accounting, in a folder and on ports of its own. Needs root and Debian's packages.

Several can run side by side, and beside a Slurm that the machine has anyway: nothing outside the folder is written.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.guard import end_jobs, guard
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.influxdb import missing as missing_influxdb
from tests.cluster.service import Service, ServiceFailed, free_ports
from tests.cluster.waiting import wait_until

CPUS = 16
ACCOUNT = "test"

_CGROUPS = Path("/sys/fs/cgroup")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_first_job_ids = itertools.count(1000, 1000)
_PROGRAMS = (
    *("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd"),
    *("sacctmgr", "scontrol", "sinfo", "sbatch", "squeue", "sacct", "scancel"),
)


def missing() -> list[str]:
    """What this machine lacks for a real Slurm; empty when it can be started."""
    lacking = [] if os.geteuid() == 0 else ["root"]
    return lacking + [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]


def missing_for_profile() -> list[str]:
    """What this machine lacks for a real Slurm that writes metrics; empty when it can be started."""
    plugins = Path("/usr/lib").glob("*/slurm-wlm/acct_gather_profile_influxdb.so")
    return missing() + missing_influxdb() + ([] if any(plugins) else ["Slurm's influxdb plugin"])


def missing_for_memory_limits() -> list[str]:
    """What this machine lacks for a real Slurm that limits its jobs' memory; empty when it can be started."""
    version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True).stdout if not missing() else ""
    there = os.access(_CGROUPS / "memory" / "memory.limit_in_bytes", os.W_OK)
    return missing() + ([] if there else [f"a writable memory cgroup (v1), for {version.strip() or 'Slurm'}"])


class SlurmCluster:
    """One machine's Slurm: `with SlurmCluster() as cluster: ...`.

    A node of 16 CPUs (more than the machine may have), the partitions `debug` (default) and `small` (2 CPUs), the
    account `test` with root in it; associations and limits are enforced. A time limit ends a job 60 to 90 seconds after
    its first minute at the earliest: Slurm's own grain.

    Args:
        name: Slurm's ClusterName.
        profile: An InfluxDB to which the jobs' metrics are written, sampled every second.
        nodes: The nodes' names, all of them this machine.
        limits_memory: Whether the kernel ends what uses more memory than its job asked for. The control groups have
            the names of nodes, whichever Slurm's they are: give nodes of a name that no other has.
        preempts: Whether there is also a partition `urgent`, whose jobs take the place of others.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        profile: InfluxServer | None = None,
        nodes: Sequence[str] = ("node1",),
        limits_memory: bool = False,
        preempts: bool = False,
    ) -> None:
        # The paths of Unix sockets are short: so is the folder's.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        guard.watch("folder", str(self.folder))
        self.name = name or f"test{os.getpid()}"
        self._profile = profile
        self.conf = self.folder / "slurm.conf"
        self._controller_port, self._accounting_port, self._database_port, *node_ports = free_ports(3 + len(nodes))
        self._nodes = dict(zip(nodes, node_ports, strict=True))
        self._first = nodes[0]
        self._limits_memory = limits_memory
        self._preempts = preempts
        # In the order in which they start.
        self.services = {
            name: Service(
                name,
                command,
                self.folder / f"{name}.log",
                {"PATH": _PATH, "LC_ALL": "C", **self.environment},
                user=user,
            )
            for name, user, command in self._commands()
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to talk to this Slurm."""
        return {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run one of Slurm's commands as root and return its standard output.

        Raises:
            ServiceFailed: It exited with another code than 0, and `check` is true.
        """
        done = self._run(*arguments, stdin=stdin)
        if check and done.returncode:
            raise ServiceFailed(f"{arguments[0]} exited with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def start(self) -> None:
        """Start everything and wait until a job can run.

        Raises:
            ServiceFailed: A service did not come up.
        """
        self._write_configuration()
        guard.watch("jobs", str(self.conf))
        for name in self.services:
            self.start_service(name)
            if name == "slurmdbd":
                self._add_associations()

    def stop(self) -> None:
        """End everything, jobs too, and remove the folder."""
        for service in self.services.values():
            service.resume()
        if self.services["slurmctld"].process and self.services["slurmd"].process:
            self._run("scancel", "--full", "--signal=KILL", "--state=RUNNING")
        for name in reversed(self.services):
            self.stop_service(name)
        end_jobs(str(self.conf))
        if self._limits_memory:
            self._remove_cgroups()
        shutil.rmtree(self.folder, ignore_errors=True)
        guard.forget("jobs", str(self.conf))
        guard.forget("folder", str(self.folder))

    def start_service(self, name: str) -> None:
        """Start `munged`, `mariadbd`, `slurmdbd`, `slurmctld`, `slurmd` (of the first node) or `slurmd-NODE`, and wait
        until it answers.
        """
        service = self.services[name]
        service.start()
        service.wait_ready(lambda: self._answers(name))

    def stop_service(self, name: str) -> None:
        """End one of them; starting it again goes on with what it had stored."""
        self.services[name].stop()

    def pause(self, name: str) -> None:
        """SIGSTOP: connections to it are accepted by the kernel and answered by nobody."""
        self.services[name].pause()

    def resume(self, name: str) -> None:
        self.services[name].resume()

    def lose_node(self) -> None:
        """Have the first node down: its jobs end as NODE_FAIL."""
        self.run("scontrol", "update", f"NodeName={self._first}", "State=DOWN", "Reason=test")

    def regain_node(self) -> None:
        """Have the first node back, and wait until it takes jobs."""
        # Refused where it is back already: it registers again by itself.
        self.run("scontrol", "update", f"NodeName={self._first}", "State=RESUME", check=False)
        wait_until(lambda: self._answers("slurmd"), 60, "the node")

    def end_out_of_memory(self, job_id: str) -> None:
        """Tell the controller of the job's end what slurmstepd does once a cgroup has counted an `oom_kill`."""
        plugins = re.findall(r"^PluginDir\s*=\s*(\S+)", self.run("scontrol", "show", "config"), re.MULTILINE)[0]
        self.run(sys.executable, "-c", _COMPLETE_OUT_OF_MEMORY, f"{plugins}/libslurmfull.so", job_id)

    def _run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": _PATH, "LC_ALL": "C", **self.environment}
        return subprocess.run(
            arguments,
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            # Where a job's output goes that names no other place.
            cwd=self.folder,
            timeout=120,
        )

    def _answers(self, name: str) -> bool:
        service, _, node = name.partition("-")
        questions = {
            "munged": ("munge", f"--socket={self._munge}", "--no-input"),
            "mariadbd": ("mariadb-admin", "--no-defaults", f"--socket={self._database}", "ping"),
            "slurmdbd": ("sacctmgr", "-n", "show", "cluster"),
            "slurmctld": ("scontrol", "ping"),
            "slurmd": ("sinfo", "--noheader", "--partition=debug", f"--nodes={node or self._first}", "--format=%t"),
        }
        done = self._run(*questions[service])
        # A node that does not answer has a star or an exclamation mark after its state.
        return done.returncode == 0 and (service != "slurmd" or done.stdout.strip() in {"idle", "mix", "alloc", "comp"})

    def _remove_cgroups(self) -> None:
        """Control groups are folders without files: rmdir, the innermost first."""
        for node in self._nodes:
            for left in sorted(_CGROUPS.glob(f"*/slurm_{node}/**/"), reverse=True):
                left.rmdir()

    @property
    def _munge(self) -> Path:
        return self.folder / "munge" / "munge.socket"

    @property
    def _database(self) -> Path:
        return self.folder / "mysql" / "mysql.sock"

    def _commands(self) -> list[tuple[str, str | None, list[str]]]:
        munge = self.folder / "munge"
        mysql = self.folder / "mysql"
        return [
            (
                "munged",
                "munge",
                [
                    "munged",
                    "--foreground",
                    f"--socket={self._munge}",
                    f"--key-file={munge}/munge.key",
                    f"--pid-file={munge}/munged.pid",
                    f"--log-file={munge}/munged.log",
                    f"--seed-file={munge}/munged.seed",
                ],
            ),
            (
                "mariadbd",
                "mysql",
                [
                    "mariadbd",
                    "--no-defaults",
                    f"--datadir={mysql}",
                    f"--tmpdir={self.folder}/mysql-tmp",
                    f"--socket={self._database}",
                    f"--pid-file={mysql}/mariadbd.pid",
                    "--bind-address=127.0.0.1",
                    f"--port={self._database_port}",
                    "--skip-name-resolve",
                    "--innodb-buffer-pool-size=128M",
                    "--innodb-flush-log-at-trx-commit=2",
                    f"--init-file={self.folder}/database.sql",
                ],
            ),
            ("slurmdbd", None, ["slurmdbd", "-D"]),
            ("slurmctld", None, ["slurmctld", "-D", "-i"]),
            *(
                (
                    "slurmd" if node == self._first else f"slurmd-{node}",
                    None,
                    ["slurmd", "-D", "-N", node, "-f", str(self.conf)],
                )
                for node in self._nodes
            ),
        ]

    def _add_associations(self) -> None:
        self.run("sacctmgr", "-i", "add", "cluster", self.name)
        self.run("sacctmgr", "-i", "add", "account", ACCOUNT, f"cluster={self.name}")
        self.run("sacctmgr", "-i", "add", "user", "root", f"account={ACCOUNT}", f"defaultaccount={ACCOUNT}")

    def _write_configuration(self) -> None:
        # A MariaDB that starts empties the folder for temporary tables: /tmp is that of others too.
        owners = {"munge": "munge", "mysql": "mysql", "mysql-tmp": "mysql", "state": "slurm", "spool": "root"}
        for name, owner in owners.items():
            (self.folder / name).mkdir(mode=0o755)
            shutil.chown(self.folder / name, owner, owner)
        key = self.folder / "munge" / "munge.key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(1024))
        shutil.chown(key, "munge", "munge")
        made = self._run(
            *("mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={self.folder}/mysql"),
            *("--skip-test-db", "--skip-name-resolve", "--auth-root-authentication-method=socket"),
            f"--tmpdir={self.folder}/mysql-tmp",
        )
        if made.returncode:
            raise ServiceFailed(f"mariadb-install-db exited with {made.returncode}: {made.stderr}{made.stdout}")
        (self.folder / "database.sql").write_text(_DATABASE)
        accounting = self.folder / "slurmdbd.conf"
        accounting.touch(mode=0o600)
        shutil.chown(accounting, "slurm", "slurm")
        accounting.write_text(
            _SLURMDBD_CONF.format(
                folder=self.folder, munge=self._munge, port=self._accounting_port, database=self._database_port
            )
        )
        # Without limits nothing here uses cgroups, but slurmd looks for mounted ones, which not every container has,
        # unless it is told which. From 23.02 on it can be told that there are none.
        version = self._run("slurmd", "-V").stdout.split()[-1]
        plugin = "cgroup/v1" if version < "23" else "disabled"
        limits = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={_CGROUPS}\nConstrainRAMSpace=yes\n"
        (self.folder / "cgroup.conf").write_text(limits if self._limits_memory else f"CgroupPlugin={plugin}\n")
        self.conf.write_text(
            _SLURM_CONF.format(
                name=self.name,
                folder=self.folder,
                munge=self._munge,
                controller=self._controller_port,
                accounting=self._accounting_port,
                nodes="\n".join(
                    f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=4000"
                    " State=UNKNOWN"
                    for node, port in self._nodes.items()
                ),
                first=self._first,
                task_plugin="task/cgroup" if self._limits_memory else "task/none",
                preemption=_PREEMPTION if self._preempts else "",
                seconds=2 if self._profile is None else 1,
            )
        )
        if self._profile is not None:
            with self.conf.open("a") as conf:
                conf.write("AcctGatherProfileType=acct_gather_profile/influxdb\n")
                # A database that several clusters write to knows jobs by their ids alone.
                conf.write(f"FirstJobId={next(_first_job_ids)}\n")
            (self.folder / "acct_gather.conf").write_text(
                _ACCT_GATHER_CONF.format(url=self._profile.url, database=DATABASE)
            )


# 253 is Slurm's SIG_OOM.
_COMPLETE_OUT_OF_MEMORY = """\
import ctypes, sys
slurm = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
slurm.slurm_init(None)
sys.exit(slurm.slurm_complete_job(int(sys.argv[2]), 253))
"""

_DATABASE = """\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=slurm
StorageType=accounting_storage/mysql
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
StorageHost=127.0.0.1
StoragePort={database}
PidFile={folder}/state/slurmdbd.pid
DebugLevel=info
"""

_ACCT_GATHER_CONF = """\
ProfileInfluxDBHost={url}
ProfileInfluxDBDatabase={database}
ProfileInfluxDBRTPolicy=autogen
ProfileInfluxDBDefault=All
"""

_SLURM_CONF = """\
ClusterName={name}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/spool/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task={seconds}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=64
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={munge}
AccountingStorageEnforce=associations,limits
AccountingStoreFlags=job_comment
ReturnToService=2
KillWait=5
OverTimeLimit=0
MinJobAge=300
MessageTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=small Nodes={first} MaxTime=60 MaxCPUsPerNode=2 State=UP
{preemption}"""

_PREEMPTION = """\
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=10
"""
