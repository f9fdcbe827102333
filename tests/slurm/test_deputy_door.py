"""The door to other users' accounts: real accounts, real sudo, real Slurm, and deputies that lie."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobbergate_flows import applications
from jobbergate_flows.applications import Application, ApplicationError, LimitExceeded, Limits
from jobbergate_flows.applications.child.plain import plain_from
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm import deputy
from jobbergate_flows.slurm.accounts import Account, AccountRefused, AccountRules, DirectoryDown, known_account
from jobbergate_flows.slurm.cluster import SubmitRequest
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.commands import SacctFind
from jobbergate_flows.slurm.deputy_door import AnswerLost, DeputyDoor, OwnAccount, Root, Start, Way, plain_to
from jobbergate_flows.slurm.door import Door, OwnAccountDoor
from jobbergate_flows.slurm.errors import (
    ClusterUnreachable,
    ConsentRefused,
    DirectoryRefused,
    FileRefused,
    RequestRefused,
    SubmissionAmbiguous,
    SubmissionRefused,
)
from jobbergate_flows.slurm.jobs import Known
from tests.cluster.accounts import WORKER, Accounts
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until

ME = OwnAccountDoor().user
NOTHING: dict[str, str] = {}
RENDERER = (sys.executable, str(Path(applications.__file__).parent / "child" / "program.py"))
Open = Callable[..., DeputyDoor]


@dataclass(frozen=True)
class Fake:
    """A deputy that is this program instead."""

    program: str
    for_others = False
    place = "/fake"
    hint = "mend it"

    def start(self, account: Account) -> Start:
        return Start((sys.executable, "-I", "-c", self.program))


class LikeOthers(OwnAccount):
    """The own account's deputy, whose account is looked at as another's."""

    for_others = True


def greeting(**changes: Any) -> str:
    account = known_account(ME)
    said = {"deputy": deputy.PROTOCOL_VERSION, "user": ME, "uid": account.uid, "gid": account.gid, "groups": []}
    return f"import json, sys, time\nprint({json.dumps({**said, **changes})!r}, flush=True)\nsys.stdin.readline()\n"


def answering(reply: str) -> Fake:
    """A deputy that answers every request with this expression, where `id` is the request's."""
    return Fake(
        f"{greeting()}for line in sys.stdin:\n    id = json.loads(line)['id']\n    print({reply}, flush=True)\n"
    )


@pytest.fixture
async def opened() -> AsyncIterator[Callable[[DeputyDoor], DeputyDoor]]:
    """Closes a door at the end of the test."""
    doors: list[DeputyDoor] = []

    def keep(door: DeputyDoor) -> DeputyDoor:
        doors.append(door)
        return door

    yield keep
    for door in doors:
        await door.close()


@pytest.fixture
def own(opened: Callable[[DeputyDoor], DeputyDoor]) -> Open:
    """Opens a door to the own account, through a deputy."""

    def own(how: Way | None = None, **options: Any) -> DeputyDoor:
        return opened(DeputyDoor(ME, how or OwnAccount(), **options))

    return own


@pytest.fixture
def to(accounts: Accounts, opened: Callable[[DeputyDoor], DeputyDoor]) -> Open:
    """Opens a door to a user's account."""

    def to(user: str, how: Way | None = None, **options: Any) -> DeputyDoor:
        return opened(accounts.door(user, how, **options))

    return to


@pytest.fixture(params=["root", "sudo"])
def how(request: pytest.FixtureRequest, accounts: Accounts) -> Way:
    """A worker that is root, and an unprivileged one with sudo."""
    return accounts.root if request.param == "root" else accounts.sudo


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    """Puts a program in the place of sbatch (or another), and returns where commands are then looked for."""

    def put(text: str, name: str = "sbatch") -> list[str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
        for parent in (tmp_path, *tmp_path.parents):
            if parent.stat().st_mode & 0o005 != 0o005:
                parent.chmod(0o755)
        return [str(folder), "/usr/bin", "/bin"]

    return put


async def sbatch(door: Door, **options: Any) -> str:
    given: dict[str, Any] = {"environment": NOTHING, "timeout": 20, **options}
    return (await door.run(("sbatch",), **given)).stdout


def exists(path: str) -> bool:
    return os.path.lexists(path)


# As whom


async def test_a_deputy_has_the_users_ids_and_groups_and_no_others(
    accounts: Accounts, to: Open, how: Way, command: Callable[..., list[str]]
) -> None:
    path = command("id; grep -h '^[UG]id:' /proc/$PPID/status; id -G")

    said = (await sbatch(to("alice", how, path=path))).splitlines()

    ids = [accounts.run_as("alice", "id", option).strip() for option in ("-u", "-g")]
    assert said[0] == accounts.run_as("alice", "id").strip()
    assert [line.split()[1:] for line in said[1:3]] == [[number] * 4 for number in ids]
    assert sorted(said[3].split()) == sorted(accounts.run_as("alice", "id", "-G").split())


async def test_nothing_of_the_workers_reaches_it(
    to: Open, how: Way, command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_KEY", "PYTHONPATH", "SLURM_CONF", "SBATCH_ACCOUNT", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "secret")
    descriptor = os.open(tmp_path / "secret-file", os.O_CREAT | os.O_RDWR)
    try:
        os.set_inheritable(descriptor, True)
        path = command(
            "ls -l /proc/self/fd /proc/$PPID/fd; tr '\\0' '\\n' < /proc/$PPID/environ; env;"
            "ps -o sid= -p $PPID; pwd; umask"
        )
        said = await sbatch(to("alice", how, path=path), environment={"SECRET": "secret"})
    finally:
        os.close(descriptor)

    assert "secret" not in said
    session, directory, umask = said.splitlines()[-3:]
    assert int(session) != os.getsid(0)
    assert (directory, umask) == ("/", "0077")
    assert "HOME=/home/alice" in said


async def test_a_deputy_is_started_with_nothing_of_the_workers(
    own: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real one closes and drops by itself what it should not have got: this one tells what it got.
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    telling = Fake(
        f"""{greeting()}
import os
got = {{
    "environment": open("/proc/self/environ").read(),
    "files": [os.path.realpath("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")],
    "directory": os.getcwd(),
    "session": os.getsid(0),
}}
number = json.loads(sys.stdin.readline())["id"]
print(json.dumps({{"id": number, "ok": {{"home": "/" + json.dumps(got)}}}}), flush=True)
sys.stdin.read()
"""
    )
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        got = json.loads((await own(telling).home())[1:])

    environment = got["environment"].strip("\0").split("\0")
    assert sorted(environment) == ["LC_ALL=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
    assert str(tmp_path / "secret") not in got["files"]
    assert got["directory"] == "/"
    assert got["session"] != os.getsid(0)


async def test_files_are_the_users_and_nobody_elses(to: Open, how: Way, accounts: Accounts) -> None:
    door = to("alice", how)
    run = Path(await door.home()) / f"run-{type(how).__name__}"

    digests = await door.write_files(str(run), {"job.sh": "1", "in/put": "2"})
    await door.write_secret(str(run), "KEY=1")

    alice = known_account("alice")
    for path in (run, run / "in", *(run / name for name in (*digests, ".environment"))):
        status = path.stat()
        mode = 0o700 if path.is_dir() else 0o600
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (alice.uid, alice.gid, mode)
    chunk = await door.read(f"{run}/job.sh")
    assert chunk is not None
    assert (chunk.data, chunk.size) == (b"1", 1)
    assert [entry.path for entry in await door.list_files(str(run))] == [".environment", "in/put", "job.sh"]
    await door.remove_files(str(run), [".environment"])
    assert not (run / ".environment").exists()


async def test_what_is_not_the_users_stays_so(to: Open, how: Way, accounts: Accounts, tmp_path: Path) -> None:
    bob = Path(await to("bob").home())
    await to("bob").write_files(str(bob / "run"), {"private": "precious"})
    door = to("alice", how)

    for forbidden in (
        door.read(f"{bob}/run/private"),
        door.read("/etc/shadow"),
        door.write_files(f"{bob}/run", {"private": "x"}),
        door.write_files("/root/run", {"a": "x"}),
        door.write_secret(f"{bob}/run", "x"),
        door.write_secret("/tmp", "x"),
        door.remove_files(f"{bob}/run", ["private"]),
        door.check_directory(str(bob)),
    ):
        with pytest.raises((FileRefused, DirectoryRefused)):
            await forbidden
    assert (bob / "run" / "private").read_text() == "precious"


async def test_what_somebody_else_made_before_us_is_no_runs_directory(
    to: Open, how: Way, accounts: Accounts, tmp_path: Path
) -> None:
    base = accounts.folder / f"shared-{type(how).__name__}"
    base.mkdir()
    base.chmod(0o777)
    accounts.run_as("bob", "sh", "-c", f"umask 0; mkdir {base}/run {base}/bobs {base}/bobs/sub")
    door = to("alice", how)
    await door.write_files(f"{base}/own", {"a": "1"})
    (base / "own").chmod(0o777)
    accounts.run_as("bob", "sh", "-c", f"umask 0; mkdir {base}/own/sub")

    with pytest.raises(DirectoryRefused, match="belongs to somebody else"):
        await door.write_files(f"{base}/run", {"a": "1"})
    with pytest.raises(DirectoryRefused, match="belongs to somebody else"):
        await door.write_secret(f"{base}/run", "KEY=1")
    with pytest.raises(FileRefused, match="belongs to somebody else"):
        await door.write_files(f"{base}/own", {"new": "1", "sub/a": "1"})

    assert sorted(path.name for path in base.rglob("*") if path.is_file()) == ["a"]
    await door.write_files(f"{base}/bobs", {"a": "1", "sub/b": "1"}, in_place=True)
    assert (base / "bobs" / "sub" / "b").read_text() == "1"


async def test_the_worker_acts_for_nobody_else(to: Open, how: Way) -> None:
    for name in ("root", WORKER, "nobody", "no-such-person", "1001", "#0", "-u", "alice\n", "Alice"):
        with pytest.raises(AccountRefused):
            await to(name, how).home()


async def test_where_sudo_refuses_the_mend_is_named(accounts: Accounts, to: Open, opened: Any) -> None:
    # Whom the worker would act for, and sudo's rules do not let it.
    door = opened(DeputyDoor(WORKER, accounts.sudo, rules=AccountRules()))

    with pytest.raises(ClusterUnreachable, match=r"not allowed|password is required") as caught:
        await door.home()

    assert "jobbergate-flows worker sudoers" in str(caught.value.hint)


async def test_a_deputy_that_the_user_cannot_read_is_a_clear_error(
    to: Open, tmp_path: Path, accounts: Accounts
) -> None:
    (tmp_path / "deputy").write_text("")
    (tmp_path / "deputy").chmod(0o600)

    for way in (Root(accounts.root.python, str(tmp_path / "deputy")), Root("/no/python", accounts.root.deputy)):
        with pytest.raises(ClusterUnreachable, match=r"[Pp]ermission denied|No such file"):
            await to("alice", way).home()


async def test_a_process_without_groups_of_its_own_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account("ann", 1000, 1000, "/", "/bin/sh", ())
    with pytest.raises(AccountRefused, match="groups"):
        Root().start(account)
    monkeypatch.setattr(sys, "version_info", (3, 12, 0, "final", 0))
    with pytest.raises(AccountRefused, match="groups"):
        Root().start(Account("ann", 1000, 1000, "/", "/bin/sh", (1000,)))


# What it does


async def test_a_consent_is_read_as_the_user(to: Open, how: Way, accounts: Accounts) -> None:
    door = to("carol", how)
    assert await door.read_consent() is None
    folder = "/home/carol/.config/jobbergate-flows"
    accounts.run_as("carol", "sh", "-c", f"umask 077; mkdir -p {folder}; echo a line > {folder}/authorized_deployments")
    try:
        assert await door.read_consent() == "a line\n"
        os.chmod(f"{folder}/authorized_deployments", 0o660)
        with pytest.raises(ConsentRefused, match="may be written by others") as caught:
            await door.read_consent()
        assert "chmod go-w" in str(caught.value.hint)
    finally:
        accounts.run_as("carol", "rm", "-r", "/home/carol/.config")


async def test_only_sbatch_and_scancel_go_through_it(own: Open) -> None:
    for name in ("squeue", "sacct", "scontrol", "sh"):
        with pytest.raises(ValueError, match="does not go through a deputy"):
            await own().run((name,), environment=NOTHING, timeout=5)


async def test_what_the_deputy_does_not_take_is_refused_for_good(own: Open) -> None:
    with pytest.raises(SubmissionRefused):
        await own().run(("sbatch", "--uid=root"), environment=NOTHING, timeout=5)
    with pytest.raises(RequestRefused, match="64 MiB"):
        await own().write_files("/nowhere", {"a": "x" * (65 << 20)})


def application(code: str = "return []", script: str = "#!/bin/sh\nid -un\n") -> Application:
    workflow = (
        "from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase\n"
        "import getpass, os\n"
        "class JobbergateApplication(JobbergateApplicationBase):\n"
        f"    def mainflow(self, data):\n        {code}\n"
    )
    config = (
        "jobbergate_config:\n  default_template: templates/job.sh.j2\n"
        "application_config:\n  day: 2026-11-21\n  deep: {1: one}\n  some: !!set {a}\n"
    )
    files = {"jobbergate.py": workflow, "jobbergate.yaml": config, "templates/job.sh.j2": script}
    return Application.from_files({name: text.encode() for name, text in files.items()}, name="it", source="test")


async def test_an_application_is_rendered_as_the_user(to: Open, how: Way, accounts: Accounts) -> None:
    door = to("alice", how, renderer=accounts.renderer())
    code = "data['who'] = os.getuid(); data['where'] = os.getcwd(); return []"
    script = "#!/bin/sh\n# {{ data.who }} {{ data.where }} {{ data.day.year }} {{ data.deep[1] }}\n"

    rendered = await application(code, script).render_elsewhere(door.render)

    uid, where, *rest = rendered.text.splitlines()[1].removeprefix("# ").split()
    assert int(uid) == known_account("alice").uid
    assert rest == ["2026", "one"]
    assert not exists(where)


@pytest.mark.parametrize(
    ("code", "limits", "said"),
    [
        ("while True: pass", Limits(seconds=1), "took longer than 1 s"),
        ("data['x'] = 'x' * (1 << 30); return []", Limits(memory=256 << 20), "more memory than it may"),
        ("data['x'] = 1; os._exit(3)", Limits(), "ended the process"),
        ("raise ValueError('mine')", Limits(), "mine"),
    ],
)
async def test_an_application_is_bounded_there_too(
    to: Open, accounts: Accounts, code: str, limits: Limits, said: str
) -> None:
    door = to("alice", renderer=accounts.renderer())

    with pytest.raises(ApplicationError, match=said):
        await application(code).render_elsewhere(door.render, limits=limits)
    assert await door.home() == "/home/alice"


async def test_an_endless_output_is_bounded_there_too(to: Open, accounts: Accounts) -> None:
    door = to("alice", renderer=accounts.renderer())
    script = "#!/bin/sh\n{% for i in range(10**5) %}{{ 'x' * 100 }}{% endfor %}"

    with pytest.raises(LimitExceeded, match="output is larger"):
        await application(script=script).render_elsewhere(door.render, limits=Limits(output=1 << 20))


# Time enough to leave something behind.
@pytest.mark.parametrize(
    ("ending", "limits", "said"),
    [("time.sleep(600)", Limits(seconds=5), "took longer"), ("os._exit(3)", Limits(), "ended the process")],
)
async def test_what_an_application_leaves_behind_ends_with_it(
    own: Open, tmp_path: Path, ending: str, limits: Limits, said: str
) -> None:
    note = tmp_path / "note"
    code = (
        "import time\n        if os.fork() == 0:\n            os.setsid()\n"
        f"            open({str(note)!r}, 'w').write(str(os.getpid()))\n            time.sleep(600)\n"
        f"        while not os.path.exists({str(note)!r}) or not open({str(note)!r}).read(): time.sleep(0.01)\n"
        f"        {ending}"
    )

    with pytest.raises(ApplicationError, match=said):
        await application(code).render_elsewhere(own(renderer=RENDERER).render, limits=limits)

    assert not exists(f"/proc/{note.read_text()}")


async def test_a_thread_without_an_end_holds_no_rendering_up(own: Open) -> None:
    code = "import threading; threading.Thread(target=threading.Event().wait).start(); return []"

    rendered = await application(code).render_elsewhere(own(renderer=RENDERER).render)

    assert rendered.text == "#!/bin/sh\nid -un\n"


async def test_a_deputy_renders_where_and_as_it_says_itself(own: Open) -> None:
    request = {"do": "describe", "config": {}, "folder": "/etc", "limits": {"seconds": 1}}

    ended = await own(renderer=RENDERER).render(request, application().files, Limits())

    # It lacks what rendering needs, and describing does not.
    assert b"KeyError" in ended.stdout


async def test_a_renderer_that_others_can_change_is_not_started(to: Open, accounts: Accounts, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("")
    program.chmod(0o666)
    door = to("alice", renderer=(accounts.renderer()[0], str(program)))

    with pytest.raises(RequestRefused):
        await door.render({"do": "render"}, {}, Limits())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.dates() | st.datetimes() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text() | st.dates(), inner),
        max_leaves=10,
    )
)
def test_a_request_reaches_the_renderer_as_it_is(value: Any) -> None:
    assert plain_from(json.loads(json.dumps(plain_to(value)))) == value


# Living and dying


async def test_one_deputy_is_kept_and_started_anew_when_it_died(own: Open, command: Callable[..., list[str]]) -> None:
    door = own(path=command("echo $PPID"))
    first = await sbatch(door)
    assert await sbatch(door) == first

    os.kill(int(first), 9)

    async def another() -> bool:
        try:
            return await sbatch(door) != first
        except (ClusterUnreachable, AnswerLost):
            # It was asked while it died.
            return False

    await await_until(another, 20, "another deputy")


async def test_an_idle_deputy_ends_and_the_next_request_starts_another(
    own: Open, command: Callable[..., list[str]]
) -> None:
    door = own(path=command("echo $PPID"), idle=0.4)
    first = int(await sbatch(door))

    async def gone() -> bool:
        return not exists(f"/proc/{first}")

    await await_until(gone, 20, "the deputy's end")
    assert int(await sbatch(door)) != first


async def test_who_may_not_be_acted_for_any_more_loses_a_deputy_that_is_in_use(
    own: Open, monkeypatch: pytest.MonkeyPatch, command: Callable[..., list[str]]
) -> None:
    found: list[Account | Exception] = [known_account(ME)]

    def find_account(name: str, *, rules: AccountRules) -> Account:
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    monkeypatch.setattr("jobbergate_flows.slurm.deputy_door.find_account", find_account)
    monkeypatch.setattr("jobbergate_flows.slurm.deputy_door._ACCOUNT_SECONDS", 0)
    door = own(LikeOthers(), path=command("echo $PPID"))
    first = await sbatch(door)
    assert await sbatch(door) == first

    found[0] = DirectoryDown("the user directory does not answer")
    with pytest.raises(DirectoryDown):
        await door.home()
    found[0] = replace(known_account(ME), groups=(12345,))
    second = await sbatch(door)
    assert second != first
    found[0] = AccountRefused("the account is not among those that are allowed")
    with pytest.raises(AccountRefused):
        await door.home()

    async def gone() -> bool:
        return not exists(f"/proc/{second.strip()}")

    await await_until(gone, 20, "the deputy's end")


async def test_requests_are_served_side_by_side(own: Open, command: Callable[..., list[str]], tmp_path: Path) -> None:
    door = own(path=command(f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; echo 5"))
    # More than the deputy serves at a time.
    submissions = [asyncio.create_task(sbatch(door, timeout=60)) for _ in range(20)]
    while not (await door.home()).startswith("/"):
        pass
    assert not any(task.done() for task in submissions)
    (tmp_path / "go").touch()

    assert await asyncio.gather(*submissions) == ["5\n"] * 20


async def test_when_its_answer_is_lost_the_job_may_exist(own: Open, command: Callable[..., list[str]]) -> None:
    door = own(path=command("kill -9 $PPID"))
    command("kill -9 $PPID", "scancel")
    cluster = CommandCluster("test", door)
    request = SubmitRequest("#!/bin/sh\n", (), "name-key", "key", "/")

    with pytest.raises(SubmissionAmbiguous):
        await cluster.submit(request)
    with pytest.raises(ClusterUnreachable):
        await cluster.cancel(["1"])


async def test_a_submission_outlives_its_door(own: Open, command: Callable[..., list[str]], tmp_path: Path) -> None:
    door = own(path=command(f"touch {tmp_path}/begun; sleep 1; touch {tmp_path}/done"))
    submission = asyncio.create_task(sbatch(door))

    async def begun() -> bool:
        return (tmp_path / "begun").exists()

    async def done() -> bool:
        return (tmp_path / "done").exists()

    await await_until(begun, 20, "the submission")
    await door.close()

    with pytest.raises(AnswerLost):
        await submission
    await await_until(done, 20, "the submission's end")


# Deputies that lie


async def test_an_older_deputy_is_named_with_the_mend(own: Open) -> None:
    with pytest.raises(ClusterUnreachable, match="speaks version 0") as caught:
        await own(Fake(greeting(deputy=0))).home()

    assert caught.value.where == "/fake"
    assert "install-deputy" in str(caught.value.hint)


@pytest.mark.parametrize(
    "changes", [{"user": "bob"}, {"uid": 12345}, {"user": ["x"]}, {"uid": str(os.geteuid())}, {"user": "root\n"}]
)
async def test_a_deputy_of_somebody_else_is_refused(own: Open, changes: dict[str, Any]) -> None:
    with pytest.raises(ClusterUnreachable, match="was started as"):
        await own(Fake(greeting(**changes))).home()


@pytest.mark.parametrize(
    "program",
    ["", "import sys; sys.exit(3)", "print('hello')", "print('{}')", "print('[]')", "print('{\"deputy\": true}')",
     "while True: print('x' * 100000)", "while True: print('x' * 100000, end='')",
     "import os; os.write(1, b'\\xff\\n')",
     "print('[' * 10000)", "import sys; sys.stderr.write('broken\\x1b[2J\\n' * 10000)"],
)  # fmt: skip
async def test_a_deputy_that_does_not_greet_is_refused(own: Open, program: str) -> None:
    with pytest.raises(ClusterUnreachable, match="did not start") as caught:
        await own(Fake(program)).home()

    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "reply",
    [
        "'x'", "''", "'null'", "'[]'", "'{}'", "json.dumps({'id': id})", "json.dumps({'id': id + 1, 'ok': {}})",
        "json.dumps({'id': None, 'error': {}})", "json.dumps({'id': str(id), 'ok': {}})",
        "json.dumps({'id': [], 'ok': 1})",
        "json.dumps({'id': id, 'ok': []})", "json.dumps({'id': id, 'ok': {}, 'error': {}})",
        "json.dumps({'id': id, 'ok': {'home': 1}})", "json.dumps({'id': id, 'ok': {'home': 'relative'}})",
        "json.dumps({'id': id, 'error': 'x'})", "'[' * 100000", "json.dumps({'id': id, 'ok': {'home': '/' * 10**8}})",
        "'x' * 10**8", "'{\"id\": ' + '1' * 100000 + '}'",
    ],
)  # fmt: skip
async def test_a_deputy_that_answers_nonsense_is_ended(own: Open, reply: str) -> None:
    with pytest.raises(ClusterUnreachable):
        await own(answering(reply)).home()
    with pytest.raises(AnswerLost):
        await sbatch(own(answering(reply)))


async def test_an_endless_answer_ends(own: Open) -> None:
    # More than any answer may be; and an end, so that without the bound this fails before the memory does.
    endless = Fake(f"{greeting()}sys.stdin.readline()\nfor _ in range(200): sys.stdout.write('x' * (1 << 20))\n")

    with pytest.raises(ClusterUnreachable, match="larger than it may be"):
        await own(endless).read("/x")


async def test_answers_to_what_nobody_asked_end_it(own: Open) -> None:
    door = own(answering("json.dumps({'id': id, 'ok': {'home': '/h'}}) + '\\n' + json.dumps({'id': 99, 'ok': {}})"))
    assert await door.home() == "/h"

    async def ended() -> bool:
        assert door._connection is not None
        return door._connection.ended

    await await_until(ended, 20, "its end")
    assert await door.home() == "/h"


@pytest.mark.parametrize(("name", "error"), [("sbatch", AnswerLost), ("scancel", ClusterUnreachable)])
async def test_a_deputy_that_never_answers_is_ended(
    own: Open, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    # It gives up long after the worker should have: without the worker's limit this fails, and does not hang.
    home = "json.dumps({'id': id, 'ok': {'home': '/h'}})"
    door = own(answering(f"{home} if json.loads(line)['do'] == 'home' else time.sleep(20)"))
    # For its start it has the time that any has.
    await door.home()
    monkeypatch.setattr("jobbergate_flows.slurm.deputy_door._SLACK_SECONDS", 0.2)

    with pytest.raises(error, match="did not answer"):
        await door.run((name,), environment=NOTHING, timeout=0.2)


async def test_its_words_reach_no_terminal_as_commands(own: Open) -> None:
    error = {"kind": "FileRefused", "message": "\x1b[2J\nfake: log", "where": "\r", "hint": "x" * 10**4}

    with pytest.raises(FileRefused) as caught:
        await own(answering(f"json.dumps({{'id': id, 'error': {error!r}}})")).home()

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize(
    "entry",
    [["/etc/passwd", 1, 1.0], ["../x", 1, 1.0], ["", 1, 1.0], ["x", -1, 1.0], ["x", 1, 1e300], ["x"], "abc", [1]],
)
async def test_a_listing_names_what_lies_below_the_directory(own: Open, entry: Any) -> None:
    with pytest.raises(ClusterUnreachable):
        await own(answering(f"json.dumps({{'id': id, 'ok': {{'entries': [{entry!r}]}}}})")).list_files("/x")


async def test_more_than_was_asked_for_is_refused(own: Open) -> None:
    data = "json.dumps({'id': id, 'ok': {'data': 'AAAAAAAA', 'size': 3}})"
    with pytest.raises(ClusterUnreachable):
        await own(answering(data)).read("/x", limit=5)
    entries = "json.dumps({'id': id, 'ok': {'entries': [['a', 1, 1], ['b', 1, 1]]}})"
    with pytest.raises(ClusterUnreachable):
        await own(answering(entries)).list_files("/x", limit=1)
    digests = "json.dumps({'id': id, 'ok': {'digests': {'a': 'sha256:other'}}})"
    with pytest.raises(ClusterUnreachable):
        await own(answering(digests)).write_files("/x", {"a": "b"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["stdout", "stderr", "code", "why", "data", "size", "entries", "home", "text", "digests"])
OK = st.fixed_dictionaries({"ok": st.dictionaries(KEYS, JSON, max_size=4) | JSON})
ERROR = st.fixed_dictionaries(
    {"error": st.fixed_dictionaries({"kind": JSON, "message": JSON, "where": JSON, "hint": JSON}) | JSON}
)
REPLIES = (OK | ERROR | st.dictionaries(st.text(max_size=5), JSON, max_size=2)).map(
    lambda reply: json.dumps({"id": 0, **reply}).replace('"id": 0', '"id": ID', 1).encode()
)
ASKING: list[Callable[[DeputyDoor], Awaitable[Any]]] = [
    lambda door: door.home(),
    lambda door: door.read("/x"),
    lambda door: door.list_files("/x"),
    lambda door: door.read_consent(),
    lambda door: door.check_directory("/x"),
    lambda door: door.write_files("/x", {"a": "b"}),
    lambda door: door.render({}, {}, Limits()),
    lambda door: sbatch(door),
]


def test_whatever_a_deputy_says_is_an_answer_or_an_error(tmp_path: Path) -> None:
    file = tmp_path / "reply"
    program = (
        f"{greeting()}for line in sys.stdin:\n    number = str(json.loads(line)['id']).encode()\n"
        f"    reply = open({str(file)!r}, 'rb').read()\n"
        "    sys.stdout.buffer.write(reply.replace(b'ID', number, 1) + b'\\n')\n    sys.stdout.flush()\n"
    )
    tried = 0

    with asyncio.Runner() as runner:

        async def make() -> DeputyDoor:
            return DeputyDoor(ME, Fake(program))

        door = runner.run(make())

        @settings(max_examples=150, deadline=None, derandomize=True)
        @given(REPLIES | st.binary().map(lambda said: said.replace(b"\n", b"")), st.sampled_from(ASKING))
        def try_it(reply: bytes, ask: Callable[[DeputyDoor], Awaitable[Any]]) -> None:
            nonlocal tried
            file.write_bytes(reply)

            async def asking() -> None:
                try:
                    await ask(door)
                except (JobbergateFlowsError, AnswerLost):
                    return

            runner.run(asking())
            tried += 1

        try_it()
        runner.run(door.close())
    assert tried > 100


# Real Slurm


class Users:
    """The real Slurm, as its users have it through a worker that is root."""

    def __init__(self, slurm: SlurmCluster, accounts: Accounts, opened: Callable[[DeputyDoor], DeputyDoor]) -> None:
        self.slurm, self.accounts, self._opened = slurm, accounts, opened
        self.since = datetime.now(UTC)

    def cluster(self, user: str, how: Way | None = None) -> CommandCluster:
        conf = str(self.slurm.conf)
        door = self._opened(self.accounts.door(user, how, slurm_conf=conf))
        return CommandCluster(self.slurm.name, door, watching=OwnAccountDoor(), slurm_conf=conf)

    async def submit(self, cluster: CommandCluster, body: str, *arguments: str, name: str = "test-k1") -> str:
        directory = f"/home/{cluster.user}"
        return await cluster.submit(SubmitRequest(f"#!/bin/bash\n{body}\n", arguments, name, "k1", directory))

    async def ended(self, cluster: CommandCluster, job_id: str) -> None:
        async def over() -> bool:
            seen = (await cluster.query({job_id: self.since}))[job_id]
            return isinstance(seen, Known) and seen.rows[0].state == "COMPLETED"

        await await_until(over, 60, f"job {job_id}", 0.3)

    def show(self, job_id: str, column: str) -> str:
        return self.slurm.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", column).strip()


@pytest.fixture
async def users(
    slurm_cluster: SlurmCluster, accounts: Accounts, opened: Callable[[DeputyDoor], DeputyDoor]
) -> AsyncIterator[Users]:
    accounts.admit(slurm_cluster)
    yield Users(slurm_cluster, accounts, opened)
    for name in ("alice", "bob"):
        slurm_cluster.run("scancel", f"--user={name}")


async def test_a_job_belongs_to_its_user(users: Users, how: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    cluster = users.cluster("alice", how)

    job_id = await users.submit(cluster, "id; umask; env; ls -l /proc/self/fd", "--output=out.txt")
    await users.ended(cluster, job_id)

    assert users.show(job_id, "%u %a") == "alice test"
    chunk = await cluster.read("/home/alice/out.txt", limit=1 << 20)
    assert chunk is not None
    said = chunk.data.decode()
    assert said.splitlines()[:2] == [users.accounts.run_as("alice", "id").strip(), "0077"]
    assert "secret" not in said
    assert not [line for line in said.splitlines() if line.startswith(("PREFECT", "SUDO_", "PYTHON"))]
    assert {"HOME=/home/alice", "USER=alice", "LOGNAME=alice"} <= set(said.splitlines())
    assert os.stat("/home/alice/out.txt").st_uid == known_account("alice").uid
    await cluster.remove_files("/home/alice", ["out.txt"])


async def test_a_job_is_found_and_cancelled_by_its_own_user_only(users: Users, how: Way) -> None:
    alice, bob = users.cluster("alice", how), users.cluster("bob", how)
    name = f"bobs-{type(how).__name__}"
    job_id = await users.submit(bob, "sleep 60", "--hold", name=name)

    assert [job.job_id for job in await bob.find(name, since=users.since)] == [job_id]
    assert await alice.find(name, since=users.since) == []
    with pytest.raises(ClusterUnreachable, match="Access/permission denied"):
        await alice.cancel([job_id])
    assert users.show(job_id, "%T") == "PENDING"

    await bob.cancel([job_id])
    assert users.show(job_id, "%T") == "CANCELLED"

    # Accounting, which learns of it later, shows everybody's jobs too.
    ended = await users.submit(bob, "true", "--output=/dev/null", name=name)

    bobs = SacctFind(name, "bob", users.since)

    async def accounted() -> bool:
        return f"\n{ended}|" in "\n" + users.slurm.run(*bobs.arguments())

    await await_until(accounted, 60, "the job in accounting", 0.3)
    assert await alice.find(name, since=users.since) == []
    assert {job.job_id for job in await bob.find(name, since=users.since)} == {job_id, ended}


@pytest.mark.parametrize("name", ["-x; $(touch /tmp/pwned)-k3", "--uid=0-k3", "a b'\"`id`-k3", "$HOME-k3", "*-k3"])
async def test_a_jobs_name_is_a_name(users: Users, name: str) -> None:
    cluster = users.cluster("alice")

    job_id = await users.submit(cluster, "true", "--hold", name=name)

    assert users.show(job_id, "%j") == name
    assert users.show(job_id, "%u") == "alice"
    assert not exists("/tmp/pwned")


@pytest.mark.parametrize("name", ["a\nb-k4", "a\0b-k4", "a\x1bb-k4"])
async def test_a_jobs_name_with_a_line_break_is_refused(users: Users, name: str) -> None:
    with pytest.raises(SubmissionRefused):
        await users.submit(users.cluster("alice"), "true", name=name)


async def test_a_user_without_an_association_hears_slurms_own_words(users: Users) -> None:
    users.slurm.run("sacctmgr", "-i", "delete", "user", "carol")

    with pytest.raises(SubmissionRefused, match="Invalid account"):
        await users.submit(users.cluster("carol"), "true")


async def test_the_script_says_what_it_says_and_is_the_users(users: Users) -> None:
    cluster = users.cluster("alice")

    with pytest.raises(SubmissionRefused):
        await users.submit(cluster, "true", "--wrap=id")
    with pytest.raises(SubmissionRefused):
        await users.submit(cluster, "#SBATCH --uid=root\nid")


def test_the_door_is_a_door() -> None:
    door: Door = DeputyDoor("alice", OwnAccount())

    assert door.user == "alice"
