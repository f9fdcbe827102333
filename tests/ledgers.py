"""Ledgers for tests, each empty: the fixtures `ledger` and `links`, and where theirs is.

A module whose tests hold for every database has `ledger_place` of its own, which returns `any_ledger_place`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobbergate_flows.jobbergate.links import Links
from jobbergate_flows.slurm.ledger import Ledger
from tests.cluster.postgres import PostgresServer


@pytest.fixture
def ledger_place(tmp_path: Path) -> str:
    """Where the ledger is opened."""
    return str(tmp_path / "ledger.sqlite3")


@pytest.fixture(params=["sqlite", "postgresql"])
def any_ledger_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What a site sets, where a ledger may be and none is yet."""
    if request.param == "sqlite":
        return str(tmp_path / "state" / "ledger.sqlite3")
    server: PostgresServer = request.getfixturevalue("postgres")
    with sa.create_engine(server.url("psycopg")).begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    return server.url("psycopg")


@pytest.fixture
def ledger(ledger_place: str) -> Iterator[Ledger]:
    opened = Ledger.open(ledger_place)
    yield opened
    opened.close()


@pytest.fixture
def links(ledger: Ledger) -> Links:
    return Links(ledger)
