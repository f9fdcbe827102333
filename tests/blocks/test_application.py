"""Stored applications: what the block holds, where a large one is fetched from, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from jobbergate_flows.applications import Application, SourceError, load_application
from jobbergate_flows.blocks.application import ApplicationNotStored, StoredApplication, aload_application
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import script_application

DIGEST = f"sha256:{'0' * 64}"


def stored(source: str) -> StoredApplication:
    return StoredApplication(name="large", digest=DIGEST, source=source)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The folder of an application whose archive has more than 512 KiB."""
    script_application(tmp_path, "large", "#!/bin/sh\n")
    (tmp_path / "large" / "mesh.bin").write_bytes(os.urandom(512 << 10))
    return tmp_path / "large"


def commit(folder: Path) -> str:
    """Commit all of a folder, and return the git reference of its branch."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet", "--initial-branch=main"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    return f"git+file://{folder}@main"


def test_a_small_application_is_stored_itself(large: Path) -> None:
    (large / "mesh.bin").unlink()
    application = Application.from_path(large)
    block = StoredApplication.of(application)
    (large / "jobbergate.py").unlink()

    assert block.application().files == application.files


def test_a_large_application_of_a_folder_is_refused_with_the_mend(large: Path) -> None:
    with pytest.raises(ApplicationNotStored, match="bytes, more than 524288") as refused:
        StoredApplication.of(Application.from_path(large))

    assert str(large) in str(refused.value)
    assert "git+URL@REF#FOLDER" in str(refused.value.hint)


def test_a_large_application_of_git_is_stored_by_its_commit(large: Path) -> None:
    application = load_application(commit(large))
    block = StoredApplication.of(application)
    (large / "mesh.bin").write_bytes(b"another")
    commit(large)

    assert block.archive is None
    assert block.application().digest == application.digest


def test_a_source_that_holds_something_else_by_now_is_not_taken(large: Path) -> None:
    source = commit(large)

    with pytest.raises(ApplicationNotStored, match=f"the source now holds sha256:.*, not {DIGEST}") as refused:
        stored(source).application()

    assert source in str(refused.value)
    assert "deploy the application again" in str(refused.value.hint)


async def test_an_application_that_the_server_does_not_have_is_named_with_its_block(
    prefect_server: PrefectServer,
) -> None:
    with pytest.raises(ApplicationNotStored, match=f"the server has no application gone@{DIGEST}") as missing:
        await aload_application(f"gone@{DIGEST}")

    assert f"slurm-application/gone-{'0' * 16}" in str(missing.value)
    assert "deploy the application again" in str(missing.value.hint)


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
