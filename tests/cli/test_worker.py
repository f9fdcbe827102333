"""`worker`: the table of whose runs are whose, and the unit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent_worker.identity.bindings import load_bindings
from agent_worker.unit import NOT_OVER_HOMES, NOT_WITH_SUDO, Mode, UnitRefused, unit_text
from jobbergate_flows.slurm.deputy import digest_of
from jobbergate_flows.slurm.deputy_door import INSTALLED, PROGRAM
from jobbergate_flows.slurm.sudoers import sudoers_text
from tests.cli.command_line import run

DIGEST = f"sha256:{'a' * 64}"
NAME = "parameter-study/nightly"
MODES: tuple[Mode, ...] = ("none", "sudo", "root")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "bindings.yaml"


def bind(table: Path, *arguments: str) -> None:
    ended = run("worker", "bind", *arguments, "--file", table)
    assert ended.code == 0, ended.err


class TestBinding:
    def test_what_is_bound_is_listed_in_its_order(self, table: Path) -> None:
        bind(table, "--deployment", NAME, "--application", f"parameter-study@{DIGEST}", "--account", "alice")
        bind(table, "--queue", "slurm/bobs", "--account", "bob", "--flows-any")
        bind(table, "--created-by", "7f9f", "--account", "carol")
        bind(table, "--pool", "slurm", "--account", "dave")

        listed = json.loads(run("worker", "bindings", "--json", "--file", table).out)

        assert listed == [
            {"deployment": NAME, "application": DIGEST, "account": "alice", "line": 1},
            {"queue": "slurm/bobs", "flows": "any", "account": "bob", "line": 4},
            {"created_by": "7f9f", "account": "carol", "line": 7},
            {"pool": "slurm", "account": "dave", "line": 9},
        ]
        assert "slurm/bobs" in run("worker", "bindings", "--file", table).out
        assert len(load_bindings(table, owner=os.geteuid()).entries) == 4

    def test_an_account_that_is_not_there_is_told(self, table: Path) -> None:
        ended = run("worker", "bind", "--pool", "a", "--account", "nobody-of-that-name", "--file", table)
        assert (ended.code, ended.out) == (0, "pool a -> nobody-of-that-name\n")
        assert "no account nobody-of-that-name" in ended.err

    def test_that_nobody_acts_for_root_is_told(self, table: Path) -> None:
        ended = run("worker", "bind", "--pool", "a", "--account", "root", "--file", table)
        assert ended.code == 0
        assert "root, for whom no worker acts" in ended.err

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--account", "alice"], "one of"),
            (["--pool", "a", "--queue", "a/b", "--account", "alice"], "one of"),
            (["--deployment", NAME, "--account", "alice"], "digest"),
            (["--deployment", NAME, "--application", "sha256:0", "--account", "alice"], "no digest"),
            (["--pool", "a", "--account", "-u root"], "no account"),
            (["--pool", "a\nb", "--account", "alice"], "cannot be seen"),
        ],
    )
    def test_nonsense_is_a_wrong_usage(self, table: Path, arguments: list[str], says: str) -> None:
        ended = run("worker", "bind", *arguments, "--file", table)
        assert ended.code == 2
        assert says in ended.err
        assert not table.exists()

    def test_what_is_bound_already_is_not_bound_twice(self, table: Path) -> None:
        bind(table, "--pool", "slurm", "--account", "alice")
        ended = run("worker", "bind", "--pool", "slurm", "--account", "bob", "--file", table)
        assert ended.code == 3
        assert "account alice" in ended.err

    def test_unbinding_removes_what_fits(self, table: Path) -> None:
        bind(table, "--pool", "a", "--account", "alice")
        bind(table, "--pool", "b", "--account", "alice")
        bind(table, "--pool", "c", "--account", "bob")

        assert run("worker", "unbind", "--pool", "a", "--file", table).out == "pool a -> alice\n"
        assert run("worker", "unbind", "--account", "alice", "--file", table).out == "pool b -> alice\n"
        assert run("worker", "unbind", "--pool", "c", "--account", "alice", "--file", table).code == 3
        assert [entry.value for entry in load_bindings(table, owner=os.geteuid()).entries] == ["c"]

    def test_unbinding_needs_to_know_what(self, table: Path) -> None:
        bind(table, "--pool", "a", "--account", "alice")
        assert run("worker", "unbind", "--file", table).code == 2
        assert run("worker", "unbind", "--pool", "b", "--file", table).code == 3

    def test_a_broken_table_is_told_with_its_line(self, table: Path) -> None:
        bind(table, "--pool", "a", "--account", "alice")
        table.write_text(table.read_text() + "- pool: b\n")
        for command in (["bindings"], ["bind", "--pool", "c", "--account", "bob"], ["unbind", "--pool", "a"]):
            ended = run("worker", *command, "--file", table)
            assert ended.code == 3
            assert f"{table}:3: account is missing" in ended.err

    def test_a_table_that_others_may_write_is_refused(self, table: Path) -> None:
        bind(table, "--pool", "a", "--account", "alice")
        table.chmod(0o666)
        ended = run("worker", "bindings", "--file", table)
        assert (ended.code, ended.out) == (3, "")
        assert "others than its owner" in ended.err


class TestActingBySudo:
    def test_the_rules_are_of_this_account_group_and_deputy(self) -> None:
        ended = run("worker", "sudoers", "--group", "hpc", "--account", "flows", "--deputy", "/opt/deputy")

        assert ended.code == 0
        assert ended.out == sudoers_text("flows", "hpc", "/opt/deputy")
        assert run("worker", "sudoers", "--group", "hpc").out == sudoers_text("jobbergate-worker", "hpc", INSTALLED)

    @pytest.mark.parametrize(
        "arguments", [["--group", "ALL"], ["--group", "hpc", "--account", "a,b"], ["--group", "hpc", "--deputy", "/a*"]]
    )
    def test_words_with_a_meaning_of_their_own_make_no_rules(self, arguments: list[str]) -> None:
        ended = run("worker", "sudoers", *arguments)

        assert ended.code not in (0, 1)
        assert ended.out == ""
        assert "cannot be written" in ended.err

    def test_without_a_group_there_are_no_rules(self) -> None:
        ended = run("worker", "sudoers")
        assert (ended.code, ended.out) == (2, "")

    @pytest.mark.usefixtures("accounts")
    def test_the_installed_deputy_is_this_packages(self, tmp_path: Path) -> None:
        target = tmp_path / "deputy"
        target.write_text("an older one")

        ended = run("worker", "install-deputy", "--to", target)

        assert ended.code == 0, ended.err
        assert ended.out == f"{target}: {digest_of(PROGRAM.read_bytes())}\n"
        assert target.read_bytes() == PROGRAM.read_bytes()
        assert (target.stat().st_uid, target.stat().st_mode & 0o7777) == (0, 0o755)

    @pytest.mark.usefixtures("accounts")
    def test_the_deputy_is_not_installed_where_others_write(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)

        ended = run("worker", "install-deputy", "--to", tmp_path / "deputy")

        assert ended.code not in (0, 1)
        assert "others could change this" in ended.err
        assert not (tmp_path / "deputy").exists()


class TestUnit:
    @pytest.mark.parametrize("mode", MODES)
    def test_systemd_takes_it(self, mode: Mode, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            required = request.config.getoption("--require-slurm") or os.environ.get("JOBBERGATE_FLOWS_REQUIRE_SLURM")
            (pytest.fail if required else pytest.skip)("no systemd-analyze here")
        prefect = tmp_path / "venv" / "bin" / "prefect"
        prefect.parent.mkdir(parents=True)
        prefect.write_text("#!/bin/sh\n")
        prefect.chmod(0o755)
        file = tmp_path / "jobbergate-worker.service"
        file.write_text(run("worker", "unit", "--mode", mode, "--prefix", tmp_path / "venv", "--account", "root").out)

        done = subprocess.run([analyze, "verify", str(file)], capture_output=True, text=True)

        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_it_starts_this_environments_worker_as_the_account_on_the_pool(self) -> None:
        text = run("worker", "unit", "--mode", "sudo", "--account", "flows", "--pool", "gpu").out
        assert settings(text)["User"] == "flows"
        assert settings(text)["ExecStart"].startswith(f"{sys.prefix}/bin/prefect worker start --pool gpu ")

    def test_with_sudo_nothing_takes_sudo_its_power(self) -> None:
        given = settings(unit_text(account="flows", pool="slurm", prefix="/opt/flows", mode="sudo"))
        assert not set(given) & {*NOT_WITH_SUDO, *NOT_OVER_HOMES}
        assert {"CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_AUDIT_WRITE"} <= set(
            given["CapabilityBoundingSet"].split()
        )

    @pytest.mark.parametrize("mode", MODES)
    def test_no_view_of_the_file_system_is_its_own(self, mode: Mode) -> None:
        given = settings(unit_text(account="flows", pool="slurm", prefix="/opt/flows", mode=mode))
        assert not set(given) & set(NOT_OVER_HOMES)
        assert not [name for name in given if name.startswith("Limit")]

    def test_without_sudo_no_privileges_can_be_gained(self) -> None:
        for mode in ("none", "root"):
            given = settings(unit_text(account="flows", pool="slurm", prefix="/opt/flows", mode=mode))
            assert given["NoNewPrivileges"] == "yes"
        assert (
            settings(unit_text(account="flows", pool="slurm", prefix="/", mode="none"))["CapabilityBoundingSet"] == ""
        )
        assert "User" not in settings(unit_text(account="flows", pool="slurm", prefix="/", mode="root"))

    @pytest.mark.parametrize("word", ["a b", "a%i", "a$HOME", "a\nExecStartPre=/bin/id", "a;id", '"a"', "", "-x", "é"])
    def test_a_word_that_systemd_would_read_otherwise_is_refused(self, word: str) -> None:
        with pytest.raises(UnitRefused):
            unit_text(account=word, pool="slurm", prefix="/opt/flows", mode="sudo")
        with pytest.raises(UnitRefused):
            unit_text(account="flows", pool=word, prefix="/opt/flows", mode="sudo")
        with pytest.raises(UnitRefused):
            unit_text(account="flows", pool="slurm", prefix=f"opt{word}", mode="sudo")


def settings(text: str) -> dict[str, str]:
    """What a unit sets, without what it says in comments."""
    lines = [line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return {name: value for name, _, value in lines}
