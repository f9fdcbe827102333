"""The own account's door: commands and files."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from jobbergate_flows.slurm import door as door_module
from jobbergate_flows.slurm.door import OwnAccountDoor, digest_of
from jobbergate_flows.slurm.errors import ClusterUnreachable, DirectoryRefused, FileRefused

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "ONLY": "this"}


@pytest.fixture
def door() -> OwnAccountDoor:
    return OwnAccountDoor()


async def test_a_command_sees_its_own_environment_and_input_only(door: OwnAccountDoor) -> None:
    result = await door.run(
        ("/bin/sh", "-c", "cat; pwd; umask; env; echo trouble >&2; exit 3"),
        environment=ENVIRONMENT,
        stdin="héllo\n",
        timeout=10,
    )

    assert result.returncode == 3
    assert result.stderr == "trouble\n"
    lines = result.stdout.splitlines()
    assert lines[:3] == ["héllo", "/", "0077"]
    assert {line.split("=")[0] for line in lines[3:]} <= {"PATH", "ONLY", "PWD", "SHLVL", "_", "OLDPWD"}


async def test_a_command_that_takes_too_long_is_killed_and_did_not_answer(door: OwnAccountDoor) -> None:
    result = await door.run(("sleep", "60"), environment=ENVIRONMENT, timeout=0.2)

    assert result.returncode is None


async def test_a_command_that_says_too_much_did_not_answer(
    door: OwnAccountDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "MAX_OUTPUT_BYTES", 1 << 20)

    result = await door.run(("cat", "/dev/zero"), environment=ENVIRONMENT, timeout=30)

    assert result.returncode is None


async def test_a_command_may_leave_its_input_unread(door: OwnAccountDoor) -> None:
    result = await door.run(("true",), environment=ENVIRONMENT, stdin="x" * (4 << 20), timeout=10)

    assert result.returncode == 0


async def test_a_command_that_is_not_there_or_cannot_be_started_was_not_run(
    door: OwnAccountDoor, tmp_path: Path
) -> None:
    (tmp_path / "sbatch").write_text("no program")
    for name in ("no-such-command", str(tmp_path / "sbatch")):
        with pytest.raises(ClusterUnreachable):
            await door.run((name,), environment=ENVIRONMENT, timeout=10)


def test_the_door_serves_several_event_loops_at_once(door: OwnAccountDoor) -> None:
    answers: list[str] = []

    def ask() -> None:
        answers.append(
            asyncio.run(door.run(("echo", "here"), environment=ENVIRONMENT, timeout=10)).stdout,
        )

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == ["here\n"] * 4


async def test_a_directory_must_be_there_and_take_files(door: OwnAccountDoor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a\nb").mkdir()
    await door.check_directory(str(tmp_path))

    for directory in ("relative", str(tmp_path / "missing"), str(tmp_path / "file"), str(tmp_path / "a\nb"), "/proc"):
        with pytest.raises(DirectoryRefused):
            await door.check_directory(directory)


async def test_files_are_written_for_their_user_alone(door: OwnAccountDoor, tmp_path: Path) -> None:
    run = tmp_path / "run"

    written = await door.write_files(str(run), {"job.sh": "#!/bin/sh\n", "in/put.txt": "ä"})

    assert (run / "in" / "put.txt").read_text() == "ä"
    assert written == {"job.sh": digest_of(b"#!/bin/sh\n"), "in/put.txt": digest_of("ä".encode())}
    assert run.stat().st_mode & 0o777 == 0o700
    assert (run / "job.sh").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in run.iterdir()) == ["in", "job.sh"]


async def test_a_file_that_is_not_ours_is_left_alone_and_nothing_is_written(
    door: OwnAccountDoor, tmp_path: Path
) -> None:
    (tmp_path / "theirs").write_text("precious")

    with pytest.raises(FileRefused, match="not ours"):
        await door.write_files(str(tmp_path), {"new": "1", "theirs": "2"})

    assert (tmp_path / "theirs").read_text() == "precious"
    assert not (tmp_path / "new").exists()


async def test_our_own_unchanged_file_is_replaced(door: OwnAccountDoor, tmp_path: Path) -> None:
    ours = await door.write_files(str(tmp_path), {"a": "1", "b": "1"})

    await door.write_files(str(tmp_path), {"a": "2", "b": "1"}, ours=ours)
    assert (tmp_path / "a").read_text() == "2"

    (tmp_path / "a").write_text("edited by hand")
    with pytest.raises(FileRefused):
        await door.write_files(str(tmp_path), {"a": "3"}, ours=ours)


async def test_no_file_is_written_outside_or_through_a_link(door: OwnAccountDoor, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    (other / "file").write_text("precious")
    (run / "link").symlink_to(other)
    (run / "file").symlink_to(other / "file")

    for path in ("../escape", "/tmp/escape", "link/file", "link/new", "file", ""):
        with pytest.raises(FileRefused):
            await door.write_files(str(run), {path: "x"})

    assert (other / "file").read_text() == "precious"
    assert not (other / "new").exists()


async def test_a_directory_that_cannot_be_made_is_refused(door: OwnAccountDoor, tmp_path: Path) -> None:
    with pytest.raises(DirectoryRefused):
        await door.write_files(str(tmp_path / "no" / "parent"), {"a": "1"})


async def test_a_secret_follows_no_link(door: OwnAccountDoor, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / ".environment").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(FileRefused, match="something else than a file"):
        await door.write_secret(str(tmp_path), "KEY=1")

    assert (tmp_path / "elsewhere").read_text() == "precious"
    (tmp_path / ".environment").unlink()
    await door.write_secret(str(tmp_path), "KEY=1")
    await door.write_secret(str(tmp_path), "KEY=2")
    assert (tmp_path / ".environment").read_text() == "KEY=2"
    assert (tmp_path / ".environment").stat().st_mode & 0o777 == 0o600
    with pytest.raises(DirectoryRefused):
        await door.write_secret(str(tmp_path / "missing"), "x")


async def test_removing_what_is_gone_is_no_error(door: OwnAccountDoor, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_text("")
    (tmp_path / "folder" / "b").write_text("")

    await door.remove_files(str(tmp_path), ["a", "missing", "folder/b", "folder/c", "missing/a"])
    await door.remove_files(str(tmp_path / "missing"), ["a"])

    assert await door.list_files(str(tmp_path)) == []
    with pytest.raises(FileRefused):
        await door.remove_files(str(tmp_path), ["folder"])


async def test_a_file_is_read_by_offset(door: OwnAccountDoor, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"0123456789")

    chunk = await door.read(str(path), offset=3, limit=4)

    assert chunk is not None
    assert (chunk.data, chunk.offset, chunk.size) == (b"3456", 3, 10)
    assert await door.read(str(tmp_path / "not yet")) is None


async def test_what_is_no_file_is_not_read_and_holds_nobody_up(door: OwnAccountDoor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    (tmp_path / "link").symlink_to("/proc/self/environ")
    for path in (tmp_path / "pipe", tmp_path, "/proc/self/environ", tmp_path / "link"):
        with pytest.raises(FileRefused):
            await door.read(str(path))


async def test_the_regular_files_of_a_directory_are_listed_by_path(door: OwnAccountDoor, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2", "b/1", "c", "a"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "a")

    entries = await door.list_files(str(tmp_path))

    assert [(entry.path, entry.size) for entry in entries] == [("a", 1), ("b/1", 3), ("b/2", 3), ("c", 1)]
    assert len(await door.list_files(str(tmp_path), limit=2)) == 2
    assert await door.list_files(str(tmp_path / "missing")) == []
