"""Stored applications: where a large one is fetched from, and that nobody waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobbergate_flows.applications import SourceError
from jobbergate_flows.blocks.application import StoredApplication, aload_application
from tests.cluster.prefect_server import PrefectServer

DIGEST = f"sha256:{'0' * 64}"


def stored(source: str) -> StoredApplication:
    return StoredApplication(name="large", digest=DIGEST, source=source)


@pytest.mark.parametrize(
    "source",
    [
        "/srv/large",
        "large",
        "git+file:///srv/large",
        "git+http://host/large",
        "git+git://host/large",
        "git+host:large",
        "git+git@host:large",
        "git+ext::sh -c true",
        "git+https://t0ken@host/large",
        "git+https://user:t0ken@host/large",
        "git+https://:t0ken@host/large",
        "git+ssh://user:t0ken@host/large",
        "git+ssh://-oProxyCommand=true/large",
        "git+ssh://-oProxyCommand=true@host/large",
        "git+https://-host/large",
        "git+https:///large",
        "git+--upload-pack=true",
        "git+https://host/large@--upload-pack=true",
    ],
)
def test_a_worker_fetches_from_another_hosts_https_or_ssh_only(source: str) -> None:
    with pytest.raises(SourceError) as refused:
        stored(source).application(remote=True)

    assert "git fetch" not in str(refused.value)
    assert "t0ken" not in str(refused.value)


@pytest.mark.parametrize("source", ["git+https://localhost:1/large@main#a", "git+ssh://git@localhost:1/large@v1"])
def test_what_it_may_fetch_is_gits_to_reach(source: str) -> None:
    with pytest.raises(SourceError, match="git fetch"):
        stored(source).application(remote=True)


def test_nothing_redirects_it_to_a_folder_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text(f'[url "file://{tmp_path}/"]\n\tinsteadOf = https://localhost:1/\n')
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(SourceError, match="transport 'file' not allowed"):
        stored("git+https://localhost:1/large").application(remote=True)


async def test_the_event_loop_does_not_wait_for_a_source(prefect_server: PrefectServer) -> None:
    called = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await stored(f"git+https://127.0.0.1:{port}/large").save(f"large-{'0' * 16}", overwrite=True)
        loading = asyncio.create_task(aload_application(f"large@{DIGEST}", remote=True))
        # This loop is who answers git: it could not, if it waited for git.
        await asyncio.wait_for(called.wait(), 20)
        with pytest.raises(SourceError, match="git fetch"):
            await loading
