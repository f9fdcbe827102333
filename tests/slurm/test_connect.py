"""Which cluster a machine reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobbergate_flows.slurm.connect import connect, state_directory
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.local_cluster import LocalCluster


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm's commands, and nothing else, on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "slurm.conf"
    path.write_text("# ClusterName=no\n clustername = hill # the one on the hill\nSlurmctldHost=nowhere\n")
    return path


def test_slurm_is_chosen_where_it_is_configured_even_if_it_does_not_answer(
    commands: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(configuration))

    cluster = connect()

    assert cluster.name == "hill"
    assert not isinstance(cluster, LocalCluster)


def test_a_given_name_and_configuration_are_used(commands: Path, configuration: Path) -> None:
    assert connect("slurm", name="other", slurm_conf=str(configuration)).name == "other"
    assert connect("slurm", slurm_conf=str(configuration)).name == "hill"


def test_without_slurms_commands_jobs_are_processes_of_the_machine(
    tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", str(configuration))

    assert isinstance(connect("auto"), LocalCluster)
    with pytest.raises(ClusterUnreachable, match="sbatch"):
        connect("slurm")


def test_local_is_local_also_where_slurm_is(
    commands: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(configuration))

    assert isinstance(connect("local"), LocalCluster)


def test_a_named_configuration_that_is_missing_is_not_passed_over(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")

    with pytest.raises(ClusterUnreachable, match=r"/nowhere/slurm\.conf"):
        connect("auto")


def test_there_is_no_other_access() -> None:
    with pytest.raises(ValueError, match="cray"):
        connect("cray")


def test_the_state_is_kept_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBBERGATE_FLOWS_STATE_DIR", str(tmp_path))

    assert state_directory() == tmp_path
