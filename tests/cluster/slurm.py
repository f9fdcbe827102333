"""A real Slurm on this machine, with accounting, in a folder and on ports of its own. Needs root and Debian's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.waiting import wait_until

PROGRAMS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch", "squeue", "sacct", "scancel")
CPUS = 16


def missing() -> list[str]:
    """What this machine lacks for a real Slurm; empty when it can be started."""
    if os.geteuid() != 0:
        return ["root"]
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SlurmFailed(RuntimeError):
    """A service did not come up; the message holds the end of its log."""


class SlurmCluster:
    """One machine's Slurm: `with SlurmCluster() as cluster: ...`."""

    def __init__(self, name: str | None = None) -> None:
        # Unix socket paths are short: so is the folder's.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.name = name or f"test{os.getpid()}"
        self.conf = self.folder / "slurm.conf"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(4)
        self.ctld_port, self.d_port, self.dbd_port, self.sql_port = ports

    @property
    def environment(self) -> dict[str, str]:
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
        done = subprocess.run(
            arguments, input=stdin, capture_output=True, text=True, check=False,
            env={"PATH": _PATH, "LC_ALL": "C", **self.environment},
        )  # fmt: skip
        if check and done.returncode:
            raise SlurmFailed(f"{arguments[0]} exited with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def start(self) -> None:
        self._configure()
        self.start_service("munged")
        wait_until((self.folder / "munge.socket").exists, 20, "munged")
        self.start_service("mariadbd")
        wait_until(lambda: self._answers("mariadb-admin", f"--socket={self.folder}/mysql.sock", "ping"), 60, "mariadbd")
        self.run("mariadb", f"--socket={self.folder}/mysql.sock", "-e",
                 "CREATE DATABASE IF NOT EXISTS slurm; CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; "
                 "GRANT ALL ON slurm.* TO slurm@'127.0.0.1'")  # fmt: skip
        self.start_service("slurmdbd")
        wait_until(lambda: self._answers("sacctmgr", "-n", "show", "cluster"), 60, "slurmdbd")
        for words in (
            ("cluster", self.name),
            ("account", "test", f"cluster={self.name}"),
            ("user", "root", "account=test"),
        ):
            self.run("sacctmgr", "-i", "add", *words)
        self.start_service("slurmctld")
        wait_until(lambda: self._answers("scontrol", "ping"), 60, "slurmctld")
        self.start_service("slurmd")
        wait_until(lambda: self.run("sinfo", "-h", "-o", "%t", check=False).startswith("idle"), 60, "an idle node")

    def stop(self) -> None:
        for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            if name in self.processes:
                self.resume(name)
        self._end_jobs()
        for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.stop_service(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_service(self, name: str) -> None:
        sockets = self.folder
        user = {"munged": "munge", "mariadbd": "mysql"}.get(name)
        command = {
            "munged": ["munged", "-F", f"--socket={sockets}/munge.socket", f"--key-file={sockets}/munge/munge.key",
                       f"--pid-file={sockets}/munge/munged.pid", f"--log-file={sockets}/munge/munged.log",
                       f"--seed-file={sockets}/munge/seed"],
            "mariadbd": ["mariadbd", "--no-defaults", f"--datadir={sockets}/mysql", f"--socket={sockets}/mysql.sock",
                         "--bind-address=127.0.0.1", f"--port={self.sql_port}", f"--pid-file={sockets}/mysql/pid", "--innodb-buffer-pool-size=128M", "--skip-name-resolve",
                         "--innodb-flush-log-at-trx-commit=2"],
            "slurmdbd": ["slurmdbd", "-D"],
            "slurmctld": ["slurmctld", "-D", "-i"],
            "slurmd": ["slurmd", "-D", "-N", "node1", "-f", str(self.conf)],
        }[name]  # fmt: skip
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            user=user, group=user, extra_groups=[] if user else None, cwd="/",
            env={"PATH": _PATH, "LC_ALL": "C", **self.environment},
        )  # fmt: skip
        log.close()

    def stop_service(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGCONT)

    def _answers(self, *command: str) -> bool:
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise SlurmFailed(f"{name} ended with {process.returncode}:\n{log}")
        done = subprocess.run(command, capture_output=True, check=False, timeout=30,
                              env={"PATH": _PATH, "LC_ALL": "C", **self.environment})  # fmt: skip
        return done.returncode == 0

    def _end_jobs(self) -> None:
        if "slurmctld" in self.processes:
            self.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
            self.run("scancel", "--user=root", check=False)
            try:
                wait_until(lambda: not self.run("squeue", "-h", check=False).strip(), 10, "the end of all jobs")
            except TimeoutError:
                pass

    def _configure(self) -> None:
        slurm = pwd.getpwnam("slurm")
        for name, owner in (("munge", "munge"), ("mysql", "mysql"), ("state", "slurm"), ("spool", "root")):
            (self.folder / name).mkdir(mode=0o755)
            shutil.chown(self.folder / name, owner, owner)
        self.folder.joinpath("munge").chmod(0o700)
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        shutil.chown(key, "munge", "munge")
        os.chmod(self.folder, 0o777 | 0o1000)
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={self.folder}/mysql", "--skip-test-db"],
            check=True, capture_output=True, env={"PATH": _PATH},
        )  # fmt: skip
        dbd = self.folder / "slurmdbd.conf"
        dbd.write_text(f"""\
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self.dbd_port}
SlurmUser=slurm
StorageType=accounting_storage/mysql
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
StorageHost=127.0.0.1
StoragePort={self.sql_port}
PidFile={self.folder}/state/slurmdbd.pid
DebugLevel=info
""")
        os.chown(dbd, slurm.pw_uid, slurm.pw_gid)
        dbd.chmod(0o600)
        self.conf.write_text(f"""\
ClusterName={self.name}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={self.ctld_port}
SlurmdPort={self.d_port}
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/state/slurmctld.pid
SlurmdPidFile={self.folder}/spool/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={self.folder}/munge.socket
AccountingStoragePort={self.dbd_port}
AccountingStoreFlags=job_comment
ReturnToService=2
KillWait=5
MinJobAge=300
MessageTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
MpiDefault=none
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={self.d_port} CPUs={CPUS} RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=node1 Default=YES MaxTime=60 State=UP
PartitionName=small Nodes=node1 MaxTime=60 MaxCPUsPerNode=2 State=UP
""")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
