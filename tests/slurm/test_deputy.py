"""The deputy as a program, asked by whoever holds its standard input; and its functions where a race is to be had."""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobbergate_flows.slurm import deputy, options
from jobbergate_flows.slurm.cluster import SubmitRequest
from jobbergate_flows.slurm.commands import Sbatch, Scancel
from jobbergate_flows.slurm.deputy import Hello, Refused, State, answer, digest_of
from jobbergate_flows.slurm.options import SlurmResources
from jobbergate_flows.slurm.submission import SECRET_FILE
from tests.cluster.waiting import wait_until

PROGRAM = Path(deputy.__file__)


class Talk:
    """A deputy of the own account, and what is said to it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout

    def say(self, value: Any) -> None:
        self.stdin.write((value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n")
        self.stdin.flush()

    def hear(self) -> dict[str, Any]:
        # A deputy that falls silent fails the test, and does not hold it up.
        silence = threading.Timer(60, self.process.kill)
        silence.start()
        try:
            line = self.stdout.readline()
        finally:
            silence.cancel()
        assert line, "the deputy said nothing more"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        self.say({"id": 1, "do": do, **values})
        return self.hear()

    def end(self) -> int:
        self.stdin.close()
        return self.process.wait(30)


@contextlib.contextmanager
def a_deputy(**hello: Any) -> Iterator[Talk]:
    process = subprocess.Popen(
        [sys.executable, "-I", str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        talk = Talk(process)
        talk.greeting = talk.hear()  # type: ignore[attr-defined]
        talk.say({"hello": hello})
        yield talk
        if not talk.stdin.closed:
            talk.stdin.close()


@pytest.fixture
def talk() -> Iterator[Talk]:
    with a_deputy() as talk:
        yield talk


@pytest.fixture
def state() -> State:
    return State(Hello())


@pytest.fixture
def commands(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Puts a program in the place of one of Slurm's, and returns where commands are then looked for."""

    def put(name: str, text: str) -> list[str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
        return [str(folder), "/usr/bin", "/bin"]

    return put


def asked(state: State, do: str, **values: Any) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(answer(json.dumps({"id": 7, "do": do, **values}).encode(), state))
    assert reply.pop("id") == 7
    return reply


def said_by(reply: dict[str, Any]) -> str:
    return base64.b64decode(reply["ok"]["stdout"]).decode()


def kind_of(reply: dict[str, Any]) -> str:
    return str(reply["error"]["kind"])


def test_it_says_first_who_it_is() -> None:
    with a_deputy() as talk:
        greeting = talk.greeting  # type: ignore[attr-defined]

    assert greeting["deputy"] == deputy.PROTOCOL_VERSION
    assert (greeting["uid"], greeting["gid"]) == (os.getuid(), os.getgid())
    assert greeting["groups"] == os.getgroups()


def test_it_closes_what_it_was_given_besides(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "secret", os.O_CREAT | os.O_RDWR)
    arguments = [sys.executable, "-I", str(PROGRAM)]
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(descriptor,)
        )
    finally:
        os.close(descriptor)
    with process:
        Talk(process).hear()
        assert set(os.listdir(f"/proc/{process.pid}/fd")) == {"0", "1", "2"}
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.usefixtures("accounts")
def test_it_is_never_roots_by_sudo() -> None:
    done = subprocess.run(
        [sys.executable, "-I", PROGRAM], env={"SUDO_UID": "1000"}, input=b"", capture_output=True, check=False
    )

    assert (done.returncode, done.stdout) == (3, b"")


def test_it_runs_on_older_pythons_and_with_the_standard_library_alone() -> None:
    tree = ast.parse(PROGRAM.read_text(), feature_version=(3, 9))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]

    assert {name.partition(".")[0] for name in modules} <= sys.stdlib_module_names
    assert PROGRAM.read_bytes().startswith(b"#!/usr/bin/python3 -I\n")


def test_its_options_are_those_that_the_model_and_the_command_use() -> None:
    request = SubmitRequest("#!/bin/sh\n", (), "name-key", "key", "/")
    fixed = {argument[2:].partition("=")[0] for argument in Sbatch(request, "other").arguments()[1:]}

    assert fixed | options.ALLOWED == deputy.SBATCH_OPTIONS


def test_what_the_commands_ask_for_is_taken(state: State) -> None:
    resources = SlurmResources(
        partition="debug", time_limit="1-00:00", array="0-9%4", dependency="afterok:1", exclusive=True,
        extra={"hint": "nomultithread", "hold": "", "output": "out %j.txt"},
    )  # fmt: skip
    request = SubmitRequest("#!/bin/sh\n", resources.to_arguments(), "näme-key", "key", "/home")

    for arguments in (Sbatch(request, "other").arguments(), Scancel(["1", "2_3"], "other").arguments()):
        deputy.Run(arguments[0], list(arguments[1:]), "", 5)._check()


@pytest.mark.parametrize(
    "argument",
    [
        "--wrap=reboot", "--uid=root", "--gid=0", "--export=ALL", "--get-user-env", "-J", "script.sh", "", "--", "-",
        "--job-name=a\nb", "--comment=a\x00b", "--output=\x1b[2J", "--chdir=relative", "--jobname=x", "--job-n=x",
        "--JOB-NAME=x", "--job-name\n=x", "; reboot", "$(reboot)",
    ],
)  # fmt: skip
def test_no_other_argument_reaches_sbatch(state: State, argument: str) -> None:
    reply = asked(state, "run", command="sbatch", arguments=[argument], stdin="", timeout=5)

    assert kind_of(reply) == "SubmissionRefused"


@pytest.mark.parametrize(
    "argument", ["--user=bob", "-u", "--me", "1;2", "1\n", "--name=x", "all", "--state=RUNNING", "--clusters=a b", "１"]
)
def test_no_other_argument_reaches_scancel(state: State, argument: str) -> None:
    reply = asked(state, "run", command="scancel", arguments=["1", argument], stdin="", timeout=5)

    assert kind_of(reply) == "SubmissionRefused"


@pytest.mark.parametrize("command", ["sh", "squeue", "/bin/sh", "../bin/sh", "sbatch ", "", "sbatch\0"])
def test_no_other_command_is_run(state: State, command: str) -> None:
    assert kind_of(asked(state, "run", command=command, arguments=[], stdin="", timeout=5)) == "RequestRefused"


def test_shell_words_reach_the_command_as_they_are(commands: Callable[[str, str], list[str]]) -> None:
    path = commands("sbatch", 'printf "%s\\n" "$@"; cat')
    words = "--job-name=-x; $(reboot) `reboot` 'a\" *"
    with a_deputy(path=path) as talk:
        reply = talk.ask("run", command="sbatch", arguments=[words], stdin="scrîpt", timeout=20)

    assert (said_by(reply), reply["ok"]["code"], reply["ok"]["why"]) == (f"{words}\nscrîpt", 0, None)


def test_a_command_sees_the_users_environment_and_nothing_else(
    commands: Callable[[str, str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    path = commands("sbatch", "/usr/bin/env; ls -l /proc/self/fd; pwd; umask")
    with open("/dev/null") as file:
        os.set_inheritable(file.fileno(), True)
        with a_deputy(path=path, slurm_conf="/conf") as talk:
            said = said_by(talk.ask("run", command="sbatch", arguments=[], stdin="", timeout=20))

    names = {line.partition("=")[0] for line in said.splitlines() if "=" in line}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} == {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LC_ALL", "SLURM_CONF",
    }  # fmt: skip
    assert said.splitlines()[-2:] == ["/", "0077"]
    assert said.count(" -> ") == 4


def test_a_command_that_somebody_else_could_have_put_there_is_not_run(
    commands: Callable[[str, str], list[str]],
) -> None:
    path = commands("sbatch", "echo 1")
    Path(path[0]).chmod(0o777)
    with a_deputy(path=path) as talk:
        reply = talk.ask("run", command="sbatch", arguments=[], stdin="", timeout=20)

    assert "others could change this" in reply["error"]["message"]


def test_a_command_that_takes_too_long_did_not_answer(commands: Callable[[str, str], list[str]]) -> None:
    with a_deputy(path=commands("sbatch", "sleep 60")) as talk:
        reply = talk.ask("run", command="sbatch", arguments=[], stdin="", timeout=0.3)

    assert (reply["ok"]["code"], reply["ok"]["why"]) == (None, "time")


def test_a_command_that_says_too_much_did_not_answer(commands: Callable[[str, str], list[str]]) -> None:
    with a_deputy(path=commands("sbatch", "cat /dev/zero")) as talk:
        reply = talk.ask("run", command="sbatch", arguments=[], stdin="", timeout=60)

    assert (reply["ok"]["code"], reply["ok"]["why"]) == (None, "output")


def test_the_last_complaints_of_a_command_are_kept(commands: Callable[[str, str], list[str]]) -> None:
    with a_deputy(path=commands("sbatch", "head -c 3000000 /dev/zero >&2; echo done >&2; echo 5")) as talk:
        reply = talk.ask("run", command="sbatch", arguments=[], stdin="", timeout=60)

    assert (said_by(reply), reply["ok"]["code"]) == ("5\n", 0)
    complaints = base64.b64decode(reply["ok"]["stderr"])
    assert len(complaints) == deputy.MAX_SAID
    assert complaints.endswith(b"\0done\n")


def test_a_slow_submission_holds_nobody_up(commands: Callable[[str, str], list[str]], tmp_path: Path) -> None:
    path = commands("sbatch", f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; echo 5")
    with a_deputy(path=path) as talk:
        talk.say({"id": 1, "do": "run", "command": "sbatch", "arguments": [], "stdin": "", "timeout": 30})
        talk.say({"id": 2, "do": "home"})
        assert talk.hear()["id"] == 2
        (tmp_path / "go").touch()
        assert said_by(talk.hear()) == "5\n"


def test_when_the_worker_dies_a_submission_is_finished_and_everything_else_ended(
    commands: Callable[[str, str], list[str]], tmp_path: Path
) -> None:
    wait = f"touch {tmp_path}/$1; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; touch {tmp_path}/done-$1"
    path = commands("sbatch", f"set sbatch; {wait}")
    commands("scancel", f"set scancel; {wait}")
    with a_deputy(path=path) as talk:
        for number, command in enumerate(("sbatch", "scancel")):
            request = {"command": command, "arguments": [], "stdin": "", "timeout": 60}
            talk.say({"id": number, "do": "run", **request})
        wait_until(lambda: (tmp_path / "sbatch").exists() and (tmp_path / "scancel").exists(), 20, "both to begin")
        talk.stdin.close()
        assert talk.hear()["ok"]["why"] == "stopped"
        (tmp_path / "go").touch()
        assert talk.process.wait(30) == 0

    assert (tmp_path / "done-sbatch").exists()
    assert not (tmp_path / "done-scancel").exists()


def test_when_the_worker_dies_the_renderer_ends(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import os, time\nopen({str(tmp_path / 'new')!r}, 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'new')!r}, {str(tmp_path / 'pid')!r})\ntime.sleep(600)\n"
    )
    limits = {"seconds": 60, "memory": 1 << 30, "output": 1 << 20, "processes": 64}
    with a_deputy(renderer=[sys.executable, str(program)]) as talk:
        talk.say({"id": 1, "do": "render", "plain": {"dict": []}, "files": {"a/b": "eA=="}, "limits": limits})
        wait_until((tmp_path / "pid").exists, 20, "the renderer")
        talk.stdin.close()
        assert talk.process.wait(30) == 0

    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_an_applications_file_stays_below_its_folder(name: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("")
    limits = {"seconds": 5, "memory": 1 << 30, "output": 1 << 20, "processes": 64}
    state = State(Hello(renderer=[sys.executable, str(program)]))
    values = {"plain": {"dict": []}, "limits": limits, "files": {name: "eA=="}}

    assert kind_of(asked(state, "render", **values)) == "FileRefused"


def test_it_ends_when_nobody_asks_for_anything() -> None:
    with a_deputy(idle=0.3) as talk:
        assert talk.process.wait(30) == 0


@pytest.mark.parametrize("umask", ["000", "007", "020", "777", "722", "77", "0o77", "-77", "", "077\n"])
def test_no_umask_lets_others_write(umask: str) -> None:
    with a_deputy(umask=umask) as talk:
        assert kind_of(talk.hear()) == "RequestRefused"
        assert talk.process.wait(30) == 2


def test_the_sites_umask_holds(tmp_path: Path) -> None:
    with a_deputy(umask="027") as talk:
        assert "ok" in talk.ask("write_files", directory=f"{tmp_path}/run", files={"a/b": "x"}, ours={}, in_place=False)

    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "run", tmp_path / "run/a", tmp_path / "run/a/b")]
    assert modes == [0o750, 0o750, 0o640]


@pytest.mark.parametrize(
    "hello",
    [{}, {"hello": []}, {"hello": {"unknown": 1}}, {"hello": {"umask": 77}}, {"hello": {"slurm_conf": "relative"}},
     {"hello": {"renderer": ["/python"]}}, {"hello": {"path": ["/a:/b"]}}, {"hello": {"idle": 0}}, {"id": 1}, [],
     b"\xff"],
)  # fmt: skip
def test_a_hello_that_is_none_ends_it(hello: Any) -> None:
    process = subprocess.Popen([sys.executable, "-I", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        talk = Talk(process)
        talk.hear()
        talk.say(hello)
        assert kind_of(talk.hear()) == "RequestRefused"
        assert process.wait(30) == 2


@pytest.mark.parametrize(
    "line",
    [b"\x00\xff\xfe", b"", b"null", b"[]", b"{}", b'{"id": "1", "do": "home"}', b'{"id": true, "do": "home"}',
     b'{"id": 1, "do": ["home"]}', b"[" * 100_000, b'{"id": 1e400}', b'{"id": ' + b"1" * 10_000 + b"}"],
)  # fmt: skip
def test_a_line_that_is_no_request_is_answered_and_the_next_one_served(talk: Talk, line: bytes) -> None:
    talk.say(line)
    assert kind_of(talk.hear()) in ("RequestRefused", "Failed")

    assert "home" in talk.ask("home")["ok"]
    assert talk.end() == 0


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "home", "extra": 1}, {"do": "read", "path": "/x"}, {"do": "read", "path": 1, "offset": 0, "limit": 1},
        {"do": "read", "path": "/x", "offset": True, "limit": 1},
        {"do": "read", "path": "/x", "offset": -1, "limit": 1},
        {"do": "read", "path": "/x", "offset": 0, "limit": (1 << 20) + 1}, {"do": "eval", "code": "1"},
        {"do": "write_files", "directory": "/x", "files": {"a": 1}, "ours": {}, "in_place": False},
        {"do": "write_files", "directory": "/x", "files": {}, "ours": {}, "in_place": 1},
        {"do": "remove_files", "directory": "/x", "paths": "a"},
        {"do": "list_files", "directory": "/x", "limit": 10**9}, {"do": "__class__"}, {"do": "render", "plain": {}},
        {"do": "run", "command": "sbatch", "arguments": [], "stdin": "", "timeout": 1e9},
        {"do": "run", "command": "sbatch", "arguments": [], "stdin": "", "timeout": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_a_request_of_another_shape_is_refused(state: State, request_: dict[str, Any]) -> None:
    assert kind_of(asked(state, **request_)) == "RequestRefused"


def test_a_script_that_is_too_large_is_refused(state: State) -> None:
    stdin = "x" * (deputy.MAX_SCRIPT + 1)

    assert kind_of(asked(state, "run", command="sbatch", arguments=[], stdin=stdin, timeout=5)) == "SubmissionRefused"


def test_a_request_of_100_megabytes_ends_it() -> None:
    with a_deputy() as talk:

        def pour() -> None:
            # Its end is said too: a deputy that takes it all would otherwise wait for the line's, and the test for it.
            with contextlib.suppress(BrokenPipeError), talk.stdin:
                for _ in range(100):
                    talk.stdin.write(b"x" * (1 << 20))

        pouring = threading.Thread(target=pour)
        pouring.start()
        reply = talk.hear()
        pouring.join(30)
        assert not pouring.is_alive()
        assert reply["id"] is None
        assert "larger than 64 MiB" in reply["error"]["message"]
        assert talk.process.wait(30) == 2


def test_half_a_request_at_the_end_is_none(talk: Talk, tmp_path: Path) -> None:
    talk.stdin.write(json.dumps({"id": 1, "do": "remove_files", "directory": str(tmp_path), "paths": ["a"]}).encode())
    talk.stdin.close()

    assert "has no end" in talk.hear()["error"]["message"]
    assert talk.process.wait(30) == 2
    assert talk.process.stderr is not None
    assert talk.process.stderr.read() == b""


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", ".", "a/", "a\0b", "a\nb", "..", "\x1b]0;x"])
def test_a_files_name_stays_below_the_directory(state: State, tmp_path: Path, name: str) -> None:
    reply = asked(
        state, "write_files", directory=str(tmp_path / "run"), files={"good": "", name: "x"}, ours={}, in_place=False
    )

    assert kind_of(reply) == "FileRefused"
    assert not (tmp_path / "run" / "good").exists()


@pytest.mark.parametrize("name", ["-rf", "$(reboot)", "a b", "'", "ü", "~", "*"])
def test_a_strange_name_is_a_name(state: State, tmp_path: Path, name: str) -> None:
    reply = asked(state, "write_files", directory=str(tmp_path / name), files={name: "x"}, ours={}, in_place=False)

    assert reply == {"ok": {"digests": {name: digest_of(b"x")}}}
    assert (tmp_path / name / name).read_text() == "x"


@pytest.mark.parametrize("directory", ["relative", "", "/", "/tmp/..", "/tmp/.", "/tmp/a\nb", "/tmp/\0"])
def test_a_runs_directory_is_an_absolute_path(state: State, directory: str) -> None:
    reply = asked(state, "write_files", directory=directory, files={"a": "x"}, ours={}, in_place=False)

    assert kind_of(reply) == "DirectoryRefused"


def test_a_runs_directory_is_no_link(state: State, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "other")

    reply = asked(state, "write_files", directory=f"{tmp_path}/run/", files={"a": "x"}, ours={}, in_place=False)

    assert "symbolic link" in reply["error"]["message"]
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("swapped", ["run", "run/sub"])
def test_a_directory_that_is_swapped_for_a_link_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "sub").mkdir(parents=True)
    written = deputy._written

    def swap(folder: int, content: bytes, mode: int) -> Any:
        if not (tmp_path / "away").exists():
            (tmp_path / swapped).rename(tmp_path / "away")
            (tmp_path / swapped).symlink_to(tmp_path / "other")
        return written(folder, content, mode)

    monkeypatch.setattr(deputy, "_written", swap)
    # What is open already is written to, where it is now; what is opened anew is refused.
    with contextlib.suppress(Refused):
        deputy.write_files(str(tmp_path / "run"), {"sub/a": "x", "sub/b": "y"}, {})

    assert (tmp_path / swapped).is_symlink()
    assert [path for path in (tmp_path / "other").rglob("*") if path.is_file()] == []


@pytest.fixture(params=[None, "ours"])
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """What the folder holds of ours: nothing, or a file `a`."""
    if request.param is None:
        return {}
    (tmp_path / "a").write_text(request.param)
    return {"a": digest_of(request.param.encode())}


def somebody_writes(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    """Between the deputy's check and its own writing."""
    written = deputy._written

    def meddle(folder: int, content: bytes, mode: int) -> Any:
        path.write_text(text)
        return written(folder, content, mode)

    monkeypatch.setattr(deputy, "_written", meddle)


def test_a_file_that_appears_or_changes_after_the_check_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: dict[str, str]
) -> None:
    somebody_writes(monkeypatch, tmp_path / "a", "precious")

    with pytest.raises(Refused, match="not ours, or was changed"):
        deputy.write_files(str(tmp_path), {"a": "x"}, ours)

    assert (tmp_path / "a").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_of_the_same_content_that_somebody_writes_meanwhile_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: dict[str, str]
) -> None:
    somebody_writes(monkeypatch, tmp_path / "a", "x")

    assert deputy.write_files(str(tmp_path), {"a": "x"}, ours) == {"a": digest_of(b"x")}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_are_written_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_args: Any, **_more: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)

    assert deputy.write_files(str(tmp_path), {"a": "x"}, {}) == {"a": digest_of(b"x")}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("leads_to", "ours"), [("same", {}), ("older", {"a": digest_of(b"older")}), ("missing", {})], ids=str
)
def test_a_link_in_a_files_place_is_not_taken_for_the_file(
    state: State, tmp_path: Path, leads_to: str, ours: dict[str, str]
) -> None:
    # Whoever owns what it leads to would change the file later.
    (tmp_path / "same").write_text("x")
    (tmp_path / "older").write_text("older")
    run = tmp_path / "run"
    run.mkdir()
    (run / "a").symlink_to(tmp_path / leads_to)

    reply = asked(state, "write_files", directory=str(run), files={"a": "x"}, ours=ours, in_place=True)

    assert kind_of(reply) == "FileRefused"
    assert os.readlink(run / "a") == str(tmp_path / leads_to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["older", "run", "same"]
    assert (tmp_path / "older").read_text() == "older"


@pytest.mark.parametrize("values", [{"path": "/x/.ssh/authorized_keys"}, {"directory": "/x", "name": ".bashrc"}])
def test_a_secret_has_one_name_only(state: State, tmp_path: Path, values: dict[str, str]) -> None:
    assert kind_of(asked(state, "write_secret", text="x", **values)) == "RequestRefused"

    assert asked(state, "write_secret", directory=str(tmp_path), text="x") == {"ok": {}}
    assert [path.name for path in tmp_path.iterdir()] == [SECRET_FILE]


def test_a_secret_is_not_written_through_a_link(state: State, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "other")

    assert kind_of(asked(state, "write_secret", directory=f"{tmp_path}/run", text="x")) == "DirectoryRefused"
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize(
    ("directory", "path"),
    [("run", "file"), (".", "run/file"), (".", "other/../other/file"), ("other", "../other/file")],
)
def test_nothing_is_removed_through_a_link_or_outside(state: State, tmp_path: Path, directory: str, path: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "run").symlink_to(tmp_path / "other")

    refused = asked(state, "remove_files", directory=os.path.normpath(tmp_path / directory), paths=[path])

    assert kind_of(refused) in ("FileRefused", "DirectoryRefused")
    assert (tmp_path / "other" / "file").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "", ".", "..", "a/", "a\nb"])
def test_what_is_removed_is_named_below_the_directory(state: State, tmp_path: Path, path: str) -> None:
    (tmp_path / "good").touch()

    assert kind_of(asked(state, "remove_files", directory=str(tmp_path), paths=["good", path])) == "FileRefused"
    assert (tmp_path / "good").exists()


def test_a_link_is_removed_itself(state: State, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")

    assert asked(state, "remove_files", directory=str(tmp_path), paths=["link"]) == {"ok": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("there", ["mode", "link", "dangling", "fifo", "hard-link-of-others"])
def test_a_secret_is_written_over_nothing_that_is_not_as_we_make_it(state: State, tmp_path: Path, there: str) -> None:
    file, other = tmp_path / ".environment", tmp_path / "precious"
    other.write_text("precious")
    other.chmod(0o600)
    match there:
        case "mode":
            other.rename(file)
            file.chmod(0o640)
        case "link":
            file.symlink_to(other)
        case "dangling":
            file.symlink_to(tmp_path / "missing")
        case "fifo":
            os.mkfifo(file, 0o600)
        case _:
            os.link(other, file)
            if os.geteuid() != 0:
                pytest.skip("only root gives files away")
            os.chown(other, 1, 1)
    before = file.lstat()

    assert kind_of(asked(state, "write_secret", directory=str(tmp_path), text="KEY=1")) == "FileRefused"

    after = file.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert not any(path.name.startswith(".jobbergate-flows-") for path in tmp_path.iterdir())


def test_a_secret_of_ours_is_replaced(state: State, tmp_path: Path) -> None:
    for text in ("KEY=1", "KEY=2"):
        assert asked(state, "write_secret", directory=str(tmp_path), text=text) == {"ok": {}}

    assert (tmp_path / ".environment").read_text() == "KEY=2"
    assert (tmp_path / ".environment").stat().st_mode & 0o7777 == 0o600


def test_only_files_of_these_contents_are_removed(state: State, tmp_path: Path) -> None:
    for name, text in {"ours": "1", "changed": "2", "kept": "1"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "folder").mkdir()
    paths = ["ours", "changed", "missing", "link", "folder"]

    done = asked(state, "remove_files", directory=str(tmp_path), paths=paths, digests=[deputy.digest_of(b"1")])

    assert done == {"ok": {}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed", "folder", "kept", "link"]


def test_what_is_written_and_run_is_in_no_requests_repr() -> None:
    requests = [
        deputy.WriteSecret("/run", "secret"), deputy.WriteFiles("/run", {"a": "secret"}, {}, False),
        deputy.Run("sbatch", [], "secret", 5), deputy.Render({"answers": "secret"}, {"a": "secret"}, {}),
    ]  # fmt: skip

    assert [request for request in requests if "secret" in repr(request)] == []


def test_data_travels_as_it_is(state: State, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(bytes(range(256)))

    reply = asked(state, "read", path=str(tmp_path / "out"), offset=250, limit=100)

    assert base64.b64decode(reply["ok"]["data"]) == bytes(range(250, 256))
    assert reply["ok"]["size"] == 256


class TestConsent:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "home" / ".config" / "jobbergate-flows" / "authorized_deployments"
        file.parent.mkdir(parents=True)
        file.write_text("a line\n")
        file.chmod(0o600)
        return file

    def read(self, file: Path) -> str | None:
        return deputy.read_consent(str(file.parents[2]))

    def test_the_users_own_file_is_read(self, file: Path) -> None:
        assert self.read(file) == "a line\n"

    def test_where_there_is_none_nothing_is_allowed(self, file: Path) -> None:
        file.unlink()
        assert self.read(file) is None
        file.parent.rmdir()
        assert self.read(file) is None

    @pytest.mark.parametrize("level", range(4))
    @pytest.mark.parametrize("mode", [0o020, 0o002])
    def test_what_others_may_write_is_refused(self, file: Path, level: int, mode: int) -> None:
        place = (file, *file.parents)[level]
        place.chmod(place.stat().st_mode | mode)

        with pytest.raises(Refused, match="may be written by others") as caught:
            self.read(file)
        assert caught.value.where == str(place)

    @pytest.mark.parametrize("level", range(3))
    def test_a_link_is_refused(self, file: Path, level: int) -> None:
        place = (file, *file.parents)[level]
        place.rename(file.parents[3] / "elsewhere")
        place.symlink_to(file.parents[3] / "elsewhere")

        with pytest.raises(Refused, match="symbolic link"):
            self.read(file)

    @pytest.mark.parametrize("level", range(4))
    @pytest.mark.usefixtures("accounts")
    def test_what_belongs_to_somebody_else_is_refused(self, file: Path, level: int) -> None:
        os.chown((file, *file.parents)[level], 1, -1)

        with pytest.raises(Refused, match="belongs to somebody else"):
            self.read(file)

    def test_what_is_no_text_file_is_refused(self, file: Path) -> None:
        file.write_bytes(b"\xff")
        with pytest.raises(Refused, match="UTF-8"):
            self.read(file)
        file.write_bytes(b"x" * (deputy.MAX_CONSENT + 1))
        with pytest.raises(Refused, match="larger than"):
            self.read(file)
        file.unlink()
        os.mkfifo(file, 0o600)
        with pytest.raises(Refused, match="no regular file"):
            self.read(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
PATHS = st.sampled_from(["/nonexistent/a", "/nonexistent/../x", "", "/", "a", "/nonexistent\0"]) | st.text()
NAMES = st.sampled_from(sorted({name for kind in deputy.REQUESTS.values() for name in kind.__dataclass_fields__}))
# Whatever is made up must not happen to be a path of this machine's.
HARMLESS = st.sampled_from([do for do in deputy.REQUESTS if do not in ("remove_files", "write_secret", "write_files")])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_asked_is_answered_by_one_line(line: bytes) -> None:
    check_answer(answer(line, State(Hello(path=["/nonexistent"]))))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(), HARMLESS, st.dictionaries(NAMES, JSON | PATHS, max_size=4))
def test_whatever_a_request_holds_is_answered_by_one_line(number: int, do: str, values: dict[str, Any]) -> None:
    reply = check_answer(answer(json.dumps({"id": number, "do": do, **values}).encode(), State(Hello(path=["/no"]))))

    assert reply["id"] == number


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text(), max_size=3), st.text(), st.text())
def test_no_command_is_found_by_its_arguments(arguments: list[str], command: str, stdin: str) -> None:
    request = {"id": 1, "do": "run", "command": command, "arguments": arguments, "stdin": stdin, "timeout": 1}

    assert "error" in check_answer(answer(json.dumps(request).encode(), State(Hello(path=["/nonexistent"]))))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_a_name_that_is_taken_has_no_way_out(name: str) -> None:
    try:
        parts = deputy._parts(name)
    except Refused:
        return
    assert parts
    assert not {"", ".", ".."} & set(parts)
    assert all("/" not in part and "\0" not in part for part in parts)


def check_answer(said: bytes) -> dict[str, Any]:
    assert said.endswith(b"\n")
    assert said.count(b"\n") == 1
    reply: dict[str, Any] = json.loads(said)
    assert set(reply) in ({"id", "ok"}, {"id", "error"})
    return reply
