"""The site's table: what is trusted, what is read, what decides, and how it is edited."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent_worker.identity.bindings import (
    Binding,
    Bindings,
    BindingsBroken,
    BindingsFile,
    add_binding,
    load_bindings,
    make_binding,
    parse_bindings,
    remove_bindings,
)
from agent_worker.identity.facts import Creator
from tests.agent_worker.identity.runs import ALICE, DEPLOYMENT, DIGEST, NAME, OTHER_DIGEST, a_run

ME = os.geteuid()
TABLE = f"""\
# the nightly study
- deployment: {NAME}   # by name
  application: {DIGEST}
  account: alice

# the rest
- pool: slurm
  account: carol
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    return folder / "bindings.yaml"


def table(text: str) -> Bindings:
    return parse_bindings(text, where="bindings.yaml")


def accounts(bindings: Bindings, **run: Any) -> list[str]:
    return [entry.account for entry in bindings.of_run(a_run(**run))]


class TestReading:
    def test_an_entry_is_a_selector_and_an_account(self) -> None:
        assert table(TABLE).entries == (
            Binding("deployment", NAME, "alice", application=DIGEST, line=2),
            Binding("pool", "slurm", "carol", line=7),
        )

    def test_no_file_is_no_entry(self, path: Path) -> None:
        assert load_bindings(path, owner=ME) == Bindings()
        assert load_bindings(path.parent / "no" / "folder.yaml", owner=ME) == Bindings()

    @pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
    def test_an_empty_file_is_no_entry(self, text: str) -> None:
        assert table(text) == Bindings()

    @pytest.mark.parametrize(
        ("text", "line", "says"),
        [
            (f"- pool: a\n  account: x\n- pool: b\n  account: y\n  deployment: {NAME}\n", 3, "one of"),
            ("- account: x\n", 1, "one of"),
            ("- pool: a\n", 1, "account is missing"),
            (f"- deployment: {NAME}\n  account: x\n", 1, "digest"),
            (f"- deployment: {NAME}\n  application: {DIGEST}0\n  account: x\n", 1, "no digest"),
            (f"- deployment: {NAME}\n  application: {DIGEST.upper()}\n  account: x\n", 1, "no digest"),
            (f"- pool: a\n  application: {DIGEST}\n  account: x\n", 1, "goes with a deployment"),
            ("- pool: a\n  account: x\n- pool: a\n  account: y\n", 3, "line 1"),
            (f"- deployment: {DEPLOYMENT}\n  flows: any\n  account: x\n" * 2, 4, "line 1"),
            (
                f"- deployment: {DEPLOYMENT}\n  flows: any\n  account: x\n"
                f"- deployment: {DEPLOYMENT.upper()}\n  flows: any\n  account: y\n",
                4,
                "line 1",
            ),
            ("- pool: a\n  account: x\n  account: root\n", 3, "duplicate key"),
            ("- pool: a\n  account: x\n  pool: b\n", 3, "duplicate key"),
            ("- pool: a\n  account: x\n  acount: y\n", 1, "no key"),
            ("- pool: a\n  account: x\n  flows: all\n", 1, "flows: any"),
            ("- pool: a\n  account: x\n  flows: true\n", 1, "no text"),
            ("- pool: a\n  account: 0\n", 1, "no text"),
            ("- pool: a\n  account: '0'\n", 1, "no account"),
            ("- pool: a\n  account: -u root\n", 1, "no account"),
            ("- pool: a\n  account: 'alice '\n", 1, "cannot be seen"),
            ("- pool: a\n  account: al\u0456ce\n", 1, "no account"),
            ('- pool: "a\\nb"\n  account: x\n', 1, "cannot be seen"),
            ("- pool: [a, b]\n  account: x\n", 1, "no text"),
            ("- pool: !!python/object/apply:os.system [id]\n  account: x\n", 1, "no text"),
            ("- deployment: nightly\n  flows: any\n  account: x\n", 1, "no deployment"),
            ("- queue: bobs\n  account: x\n", 1, "no queue"),
            ("- pool: a\n  account: x\n- y\n", 3, "no mapping"),
            ("pool: a\naccount: x\n", 1, "no list"),
            ("- pool: a\n  account: x\n--- \n- pool: b\n", 3, "no YAML"),
            ("- pool: a\n\taccount: x\n", 2, "no YAML"),
            ("- pool: {a\n", 2, "no YAML"),
        ],
        ids=ascii,
    )
    def test_a_wrong_entry_breaks_the_whole_table_at_its_line(self, text: str, line: int, says: str) -> None:
        with pytest.raises(BindingsBroken) as caught:
            table(text)
        assert caught.value.where == f"bindings.yaml:{line}"
        assert says in caught.value.message

    def test_no_text_makes_it_do_more_than_refuse(self) -> None:
        bomb = "a: &a [x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}]\n" for i in range(20))
        for text in (bomb, "[" * 1500, "\x00", "- &a [*a]\n", "- <<: {pool: a}\n  pool: b\n"):
            with pytest.raises(BindingsBroken):
                table(text)


class TestTrust:
    """Who could have written the file is who lets people in."""

    def test_the_owners_file_that_nobody_else_may_write_is_read(self, path: Path) -> None:
        path.write_text(TABLE)
        path.chmod(0o644)
        assert len(load_bindings(path, owner=ME).entries) == 2

    def refused(self, path: Path, says: str, *, owner: int = ME) -> None:
        with pytest.raises(BindingsBroken) as caught:
            load_bindings(path, owner=owner)
        assert says in caught.value.message
        assert caught.value.hint
        with pytest.raises(BindingsBroken):
            BindingsFile(path, owner=owner).current()

    @pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
    def test_a_file_that_others_may_write_is_refused(self, path: Path, mode: int) -> None:
        path.write_text(TABLE)
        path.chmod(mode)
        self.refused(path, "others than its owner may write it")

    @pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
    def test_a_directory_that_others_may_write_is_refused(self, path: Path, mode: int) -> None:
        path.write_text(TABLE)
        path.parent.chmod(mode)
        self.refused(path, "others than its owner may write it")

    def test_a_directory_further_up_that_others_may_write_is_refused(self, path: Path) -> None:
        path.write_text(TABLE)
        path.parent.parent.chmod(0o777)
        self.refused(path, f"directory {path.parent.parent}")

    def test_somebody_elses_file_is_refused(self, path: Path) -> None:
        path.write_text(TABLE)
        self.refused(path, f"belongs to uid {ME}", owner=ME + 4711)

    def test_a_link_is_refused(self, path: Path, tmp_path: Path) -> None:
        real = tmp_path / "real.yaml"
        real.write_text(TABLE)
        path.symlink_to(real)
        self.refused(path, "symbolic link")

    def test_a_directory_that_is_a_link_is_refused(self, path: Path, tmp_path: Path) -> None:
        path.write_text(TABLE)
        (tmp_path / "link").symlink_to(path.parent)
        self.refused(tmp_path / "link" / path.name, "symbolic link")

    def test_a_pipe_is_refused_and_not_waited_for(self, path: Path) -> None:
        os.mkfifo(path, 0o644)
        self.refused(path, "no regular file")

    def test_a_huge_file_is_refused(self, path: Path) -> None:
        path.write_text("#" * (1024 * 1024 + 1))
        self.refused(path, "more than")


class TestReloading:
    def write(self, path: Path, text: str) -> None:
        beside = path.with_suffix(".new")
        beside.write_text(text)
        beside.chmod(0o644)
        beside.replace(path)

    def test_a_change_is_seen_without_a_restart(self, path: Path) -> None:
        file = BindingsFile(path, owner=ME)
        assert file.current() == Bindings()
        self.write(path, TABLE)
        assert len(file.current().entries) == 2
        self.write(path, TABLE.replace("carol", "bobby"))
        assert file.current().entries[1].account == "bobby"
        path.unlink()
        assert file.current() == Bindings()

    def test_what_did_not_change_is_not_read_again(self, path: Path) -> None:
        self.write(path, TABLE)
        file = BindingsFile(path, owner=ME)
        assert file.current() is file.current()

    @pytest.mark.parametrize("broken", ["- pool: a\n", TABLE + "- nonsense\n", "\x00"])
    def test_a_table_that_breaks_lets_nobody_in_any_more(self, path: Path, broken: str) -> None:
        self.write(path, TABLE)
        file = BindingsFile(path, owner=ME)
        file.current()
        self.write(path, broken)
        for _ in range(2):
            with pytest.raises(BindingsBroken):
                file.current()
        self.write(path, TABLE)
        assert len(file.current().entries) == 2

    def test_one_that_loses_its_protection_lets_nobody_in_any_more(self, path: Path) -> None:
        self.write(path, TABLE)
        file = BindingsFile(path, owner=ME)
        file.current()
        path.chmod(0o666)
        with pytest.raises(BindingsBroken):
            file.current()
        path.chmod(0o644)
        assert len(file.current().entries) == 2
        # Nothing of the file itself changes by this.
        path.parent.chmod(0o777)
        with pytest.raises(BindingsBroken):
            file.current()


class TestWhichEntryDecides:
    ALL = table(
        f"""\
- pool: slurm
  account: pool
- created_by: {ALICE.id}
  account: creator
- queue: slurm/default
  account: queue
- deployment: {NAME}
  application: {DIGEST}
  account: name
- deployment: {DEPLOYMENT}
  application: {DIGEST}
  account: uuid
"""
    )

    def test_the_most_specific(self) -> None:
        by_alice = {"created_by": ALICE}
        assert accounts(self.ALL, **by_alice) == ["uuid"]
        assert accounts(self.ALL, **by_alice, deployment_id="x") == ["name"]
        elsewhere: dict[str, Any] = {**by_alice, "deployment_id": None, "deployment_name": None}
        assert accounts(self.ALL, **elsewhere) == ["queue"]
        assert accounts(self.ALL, **elsewhere, work_queue="bobs") == ["creator"]
        assert accounts(self.ALL, deployment_id=None, deployment_name=None, work_queue=None) == ["pool"]
        assert accounts(self.ALL, deployment_id=None, deployment_name=None, work_pool="other") == []

    def test_an_application_that_was_changed_is_not_let_in_by_a_less_specific_entry(self) -> None:
        assert accounts(self.ALL, application=OTHER_DIGEST) == ["uuid"]

    def test_a_deployment_may_have_several_applications(self) -> None:
        entry = "- deployment: {0}\n  application: {1}\n  account: alice\n"
        assert accounts(table(entry.format(NAME, DIGEST) + entry.format(NAME, OTHER_DIGEST))) == ["alice", "alice"]

    @pytest.mark.parametrize("kind", ["AUTOMATION", "SCHEDULE", "user", ""])
    def test_who_was_not_signed_in_is_nobody(self, kind: str) -> None:
        # The open-source server writes AUTOMATION for whoever sends the header.
        forged = Creator(ALICE.id, kind, ALICE.display_value)
        assert accounts(self.ALL, deployment_id=None, deployment_name=None, work_queue=None, created_by=forged) == [
            "pool"
        ]

    def test_a_display_value_is_not_an_id(self) -> None:
        renamed = Creator("0", "USER", ALICE.id)
        assert accounts(self.ALL, deployment_id=None, deployment_name=None, work_queue=None, created_by=renamed) == [
            "pool"
        ]

    def test_a_queue_of_another_pool_is_another_queue(self) -> None:
        assert accounts(self.ALL, deployment_id=None, deployment_name=None, work_pool="x") == []


class TestEditing:
    def test_the_first_entry_makes_the_file_for_all_to_read(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "bindings.yaml"
        add_binding(path, make_binding({"pool": "slurm", "account": "carol"}), owner=ME)
        assert path.read_text() == "- pool: slurm\n  account: carol\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_order_and_comments_stay(self, path: Path) -> None:
        path.write_text(TABLE.rstrip("\n"))
        added = make_binding({"deployment": "my flow/it's #1", "flows": "any", "account": "bob"})
        add_binding(path, added, owner=ME)
        assert path.read_text().startswith(TABLE)
        assert [entry.account for entry in load_bindings(path, owner=ME).entries] == ["alice", "carol", "bob"]

        gone = remove_bindings(path, lambda entry: entry.account == "alice", owner=ME)
        assert [entry.account for entry in gone] == ["alice"]
        assert path.read_text().startswith("# the nightly study\n\n# the rest\n- pool: slurm\n  account: carol\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_all_entries_can_go_and_come_again(self, path: Path) -> None:
        path.write_text(TABLE)
        assert len(remove_bindings(path, lambda entry: True, owner=ME)) == 2
        assert load_bindings(path, owner=ME) == Bindings()
        add_binding(path, make_binding({"pool": "slurm", "account": "carol"}), owner=ME)
        assert len(load_bindings(path, owner=ME).entries) == 1

    def test_what_there_is_already_is_not_added(self, path: Path) -> None:
        path.write_text(TABLE)
        with pytest.raises(BindingsBroken, match="account carol"):
            add_binding(path, make_binding({"pool": "slurm", "account": "bob"}), owner=ME)
        assert path.read_text() == TABLE

    def test_a_broken_table_is_left_for_people_to_mend(self, path: Path) -> None:
        path.write_text("- nonsense\n")
        with pytest.raises(BindingsBroken):
            add_binding(path, make_binding({"pool": "slurm", "account": "bob"}), owner=ME)
        with pytest.raises(BindingsBroken):
            remove_bindings(path, lambda entry: True, owner=ME)
        assert path.read_text() == "- nonsense\n"

    def test_a_table_that_is_written_in_another_way_is_left_for_people_to_edit(self, path: Path) -> None:
        text = "[{pool: a, account: x}, {pool: b, account: y}]\n"
        path.write_text(text)
        with pytest.raises(BindingsBroken, match="edit the file"):
            add_binding(path, make_binding({"pool": "c", "account": "bob"}), owner=ME)
        with pytest.raises(BindingsBroken, match="edit the file"):
            remove_bindings(path, lambda entry: entry.account == "x", owner=ME)
        assert path.read_text() == text
