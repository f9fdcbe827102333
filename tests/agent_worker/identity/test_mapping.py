"""From a run's creator to an account: tables and plugins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_worker.identity.facts import Creator
from agent_worker.identity.mapping import (
    Mapped,
    MapperBroken,
    MapperUnavailable,
    PluginMapper,
    TableMapper,
    map_creator,
)
from tests.agent_worker.identity.runs import ALICE

PLUGIN = """
class Directory(dict):
    def __missing__(self, email):
        if email == "down":
            raise ConnectionError("ldap is down")
        raise KeyError(email)

def factory():
    return Directory({"alice@example.org": "alice", "zero": 0, "empty": ""})

def function():
    return lambda identity: {"alice@example.org": "alice"}.get(identity)

def broken():
    raise RuntimeError("no settings")
"""
ENTRY_POINTS = """\
[jobbergate_agent.user_mapper]
old-mapper = site_mapper:factory
[jobbergate_flows.user_mapper]
new-mapper = site_mapper:function
broken-mapper = site_mapper:broken
missing-mapper = site_mapper:nowhere
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of the site's with mappers, installed."""
    metadata = tmp_path / "site_mapper-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: site-mapper\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "site_mapper.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("site_mapper", None)


def test_a_table_maps_the_id() -> None:
    mapper = TableMapper({ALICE.id: "alice"})
    assert map_creator(mapper, ALICE) == Mapped("alice", f"table: created_by id {ALICE.id}")
    assert map_creator(mapper, Creator("other", "USER", ALICE.display_value)) is None


def test_the_display_value_counts_only_where_the_site_says_so() -> None:
    mapper = TableMapper({ALICE.display_value: "alice"})
    assert map_creator(mapper, ALICE) is None
    assert map_creator(mapper, ALICE, by="display_value") is not None


@pytest.mark.parametrize(
    "creator",
    [
        None,
        Creator(ALICE.id, "AUTOMATION", ALICE.display_value),
        Creator(ALICE.id, "SCHEDULE", ALICE.display_value),
        Creator(ALICE.id, "USER", ""),
        Creator(ALICE.id, "USER", "alice@example.org\n"),
        Creator(ALICE.id, "USER", "\u0430lice@example.org"),
        Creator(ALICE.id, "USER", "ALICE@example.org"),
        Creator(ALICE.id, "USER", " alice@example.org"),
    ],
    ids=ascii,
)
def test_who_is_not_exactly_the_person_is_nobody(creator: Creator | None) -> None:
    assert map_creator(TableMapper({ALICE.display_value: "alice"}), creator, by="display_value") is None


@pytest.mark.usefixtures("site")
class TestPlugins:
    @pytest.mark.parametrize("name", ["old-mapper", "new-mapper"])
    def test_a_mapping_or_a_function_of_either_group(self, name: str) -> None:
        mapper = PluginMapper(name)
        assert mapper.account("alice@example.org") == "alice"
        assert mapper.account("mallory@example.org") is None
        assert map_creator(mapper, ALICE, by="display_value") == Mapped(
            "alice", f"plugin {name}: created_by display_value alice@example.org"
        )

    def test_a_failure_is_not_the_same_as_nobody(self) -> None:
        with pytest.raises(MapperUnavailable, match="ldap is down"):
            PluginMapper("old-mapper").account("down")

    @pytest.mark.parametrize("identity", ["zero", "empty"])
    def test_an_answer_that_is_no_name_lets_nobody_in(self, identity: Any) -> None:
        with pytest.raises(MapperBroken, match="instead of an account"):
            PluginMapper("old-mapper").account(identity)

    @pytest.mark.parametrize("name", ["broken-mapper", "missing-mapper"])
    def test_one_that_cannot_be_made_is_told(self, name: str) -> None:
        with pytest.raises(MapperBroken, match="cannot be made"):
            PluginMapper(name)

    def test_one_that_is_not_there_is_told_with_those_that_are(self) -> None:
        with pytest.raises(MapperBroken, match=r"new-mapper.*old-mapper"):
            PluginMapper("nonsense")
