"""The door to another user's account: a deputy, that is a process of `deputy.py` that runs as that user.

The user owns the deputy, and can make it say anything: its answers are bounded, checked, and taken for the user's word.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from jobbergate_flows.applications.isolation import Limits
from jobbergate_flows.slurm import deputy
from jobbergate_flows.slurm.accounts import Account, AccountRefused, AccountRules, find_account, known_account
from jobbergate_flows.slurm.cluster import FileChunk, FileEntry
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.door import error_of
from jobbergate_flows.slurm.errors import ClusterUnreachable, RequestRefused

PROGRAM = Path(deputy.__file__)
INSTALLED = "/usr/local/libexec/jobbergate-flows-deputy"
"""Where a site installs the deputy, if not elsewhere."""

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class AnswerLost(OSError):
    """A request was sent, and its answer will never come: whether it was done is not known."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a process is started: its command line; and as whom, where it is not the worker's own account."""

    arguments: tuple[str, ...]
    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None


class Way(Protocol):
    """A way to start a user's deputy."""

    @property
    def for_others(self) -> bool:
        """Whether it starts the deputies of other accounts than the worker's."""

    @property
    def place(self) -> str:
        """Which deputy it starts, for people."""

    @property
    def hint(self) -> str:
        """What to look at when it does not start."""

    def start(self, account: Account) -> Start:
        """The start of that account's deputy."""


@dataclass(frozen=True, slots=True)
class OwnAccount:
    """`none`: the worker's own account, which needs no privilege."""

    for_others = False
    place = str(PROGRAM)
    hint = "only the worker's own account is to be had in this mode"

    def start(self, account: Account) -> Start:
        """See `Way.start`."""
        return Start((sys.executable, "-I", str(PROGRAM)))


@dataclass(frozen=True, slots=True)
class Sudo:
    """`sudo`: an unprivileged worker, whom sudo lets start one fixed program as the members of one group.

    Args:
        deputy: The program, as in the sudoers file.
    """

    deputy: str = INSTALLED
    for_others = True
    hint = "see that sudo's rules have what `jobbergate-flows worker sudoers` prints"

    @property
    def place(self) -> str:
        """See `Way.place`."""
        return self.deputy

    def start(self, account: Account) -> Start:
        """See `Way.start`."""
        return Start(("sudo", "-n", "-u", account.name, "--", self.deputy))


@dataclass(frozen=True, slots=True)
class Root:
    """`root`: a worker that is root starts the deputy as the user, with the user's groups and none of its own.

    Args:
        python: An interpreter that users can run.
        deputy: The program; users must be able to read it.
    """

    python: str = sys.executable
    deputy: str = str(PROGRAM)
    for_others = True
    hint = "see that users can run this Python and read this program, or install the deputy"

    @property
    def place(self) -> str:
        """See `Way.place`."""
        return self.deputy

    def start(self, account: Account) -> Start:
        """See `Way.start`."""
        if not account.groups or sys.version_info[:3] == (3, 12, 0):
            # Python 3.12.0 leaves root's groups on the child in some cases.
            raise AccountRefused(
                "the groups of a process cannot be set", where=account.name, hint="use another Python than 3.12.0"
            )
        return Start((self.python, "-I", self.deputy), account.uid, account.gid, account.groups)


class DeputyDoor:
    """Acting as one user, through a deputy that is started when it is needed and kept while it is used.

    For one event loop. Querying Slurm needs nobody's rights, and does not go through it.

    Args:
        user: The account's name.
        how: The way in which its deputy is started.
        rules: Whom a worker may act for; `OwnAccount` does not ask.
        umask: Of what is made: 077, 027 or 022.
        slurm_conf: Path of slurm.conf where it is not the system's.
        path: Where Slurm's commands are, if not in the usual places.
        renderer: A Python that users can run, with Jinja, and the path of `applications/child/program.py`.
        idle: Seconds without a request after which the deputy ends.
    """

    def __init__(
        self,
        user: str,
        how: Way,
        *,
        rules: AccountRules | None = None,
        umask: str = "077",
        slurm_conf: str | None = None,
        path: Sequence[str] | None = None,
        renderer: tuple[str, str] | None = None,
        idle: float = 600.0,
    ) -> None:
        self._user = user
        self._how = how
        self._rules = rules or AccountRules()
        self._idle = idle
        self._hello = {
            "umask": umask,
            "slurm_conf": slurm_conf,
            "renderer": list(renderer) if renderer else None,
            "path": list(path) if path else None,
            "idle": idle,
        }
        self._starting = asyncio.Lock()
        # The deputy has threads left over for files.
        self._running = asyncio.Semaphore(deputy.AT_ONCE - 4)
        self._rendering = asyncio.Semaphore(2)
        self._connection: _Connection | None = None
        self._account: Account | None = None
        self._looked_at = 0.0

    @property
    def user(self) -> str:
        """The account's name."""
        return self._user

    async def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", timeout: float
    ) -> CommandResult:
        """Run sbatch or scancel, in an environment that the deputy makes; see `Door.run`.

        Raises:
            ClusterUnreachable: It was not run.
            AnswerLost: sbatch may have been run.
            RequestRefused, SubmissionRefused: The deputy does not take these arguments.
            ValueError: The command is none that is run as a user.
        """
        command, *rest = arguments
        if command not in ("sbatch", "scancel"):
            raise ValueError(f"{command} does not go through a deputy: ask Slurm as the worker")
        async with self._running:
            ended = await self._ask(
                "run",
                _ended,
                seconds=timeout + _SLACK_SECONDS,
                # In base64, and both of what it says.
                allowance=3 * deputy.MAX_SAID,
                in_doubt=command == "sbatch",
                command=command,
                arguments=rest,
                stdin=stdin,
                timeout=min(timeout, deputy.MAX_SECONDS),
            )
            return CommandResult.of(ended)

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""
        await self._ask("check_directory", _nothing, directory=directory)

    async def write_files(
        self,
        directory: str,
        files: Mapping[str, str],
        *,
        ours: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""
        digests = {path: deputy.digest_of(text.encode()) for path, text in files.items()}

        def written(ok: Mapping[str, Any]) -> dict[str, str]:
            _expect(ok == {"digests": digests})
            return digests

        return await self._ask(
            "write_files",
            written,
            allowance=sum(len(json.dumps(path)) + 100 for path in files),
            directory=directory,
            files=dict(files),
            ours=dict(ours or {}),
            in_place=in_place,
        )

    async def write_secret(self, directory: str, text: str) -> None:
        """See `Cluster.write_secret`."""
        await self._ask("write_secret", _nothing, directory=directory, text=text)

    async def remove_files(self, directory: str, paths: Sequence[str], *, digests: Sequence[str] | None = None) -> None:
        """See `Cluster.remove_files`."""
        kept = None if digests is None else list(digests)
        await self._ask("remove_files", _nothing, directory=directory, paths=list(paths), digests=kept)

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`; at most 1 MiB."""
        limit = min(limit, deputy.MAX_READ)

        def chunk(ok: Mapping[str, Any]) -> FileChunk | None:
            data, size = ok["data"], ok["size"]
            if data is None:
                return None
            content = base64.b64decode(data, validate=True)
            _expect(type(size) is int and 0 <= size < 1 << 62 and len(content) <= limit)
            return FileChunk(content, offset, size)

        return await self._ask("read", chunk, allowance=2 * limit, path=path, offset=offset, limit=limit)

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`; at most 10,000."""
        limit = min(limit, deputy.MAX_LISTED)

        def entries(ok: Mapping[str, Any]) -> list[FileEntry]:
            _expect(len(ok["entries"]) <= limit)
            return [_entry(*values) for values in ok["entries"]]

        return await self._ask("list_files", entries, allowance=25_000 * limit, directory=directory, limit=limit)

    async def home(self) -> str:
        """The user's home directory."""

        def home(ok: Mapping[str, Any]) -> str:
            _expect(isinstance(ok["home"], str) and ok["home"].startswith("/") and ok["home"].isprintable())
            return str(ok["home"])

        return await self._ask("home", home)

    async def read_consent(self) -> str | None:
        """The text of the user's file of authorized deployments; None when there is none.

        Raises:
            ConsentRefused: Somebody else than the user could have written it.
            ClusterUnreachable
        """

        def text(ok: Mapping[str, Any]) -> str | None:
            _expect(ok["text"] is None or isinstance(ok["text"], str))
            return None if ok["text"] is None else str(ok["text"])

        return await self._ask("read_consent", text, allowance=6 * deputy.MAX_CONSENT)

    async def render(self, request: Mapping[str, Any], files: Mapping[str, bytes], limits: Limits) -> deputy.Ended:
        """Have the user's own process render an application: for `Application.render_elsewhere`.

        A user's renderings wait for each other, two at a time, and for nobody else's.

        Raises:
            RequestRefused: The deputy has no renderer, or does not trust it.
            ClusterUnreachable
        """
        async with self._rendering:
            return await self._ask(
                "render",
                _ended,
                seconds=limits.seconds + _SLACK_SECONDS,
                allowance=2 * limits.output + 2 * deputy.MAX_SAID,
                plain=plain_to(dict(request)),
                files={path: base64.b64encode(content).decode() for path, content in files.items()},
                limits=asdict(limits),
            )

    async def close(self) -> None:
        """End the deputy. A submission that it has begun is brought to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close("the door was closed")

    async def _ask(
        self,
        do: str,
        parse: Callable[[Mapping[str, Any]], T],
        *,
        seconds: float = 60.0,
        allowance: int = 0,
        in_doubt: bool = False,
        **values: Any,
    ) -> T:
        line = json.dumps({"do": do, **values}).encode()
        if len(line) > deputy.MAX_REQUEST - 100:
            raise RequestRefused(f"the request is larger than {deputy.MAX_REQUEST >> 20} MiB", hint="use smaller files")
        connection = await self._connected()
        pending = _Pending(asyncio.get_running_loop().create_future(), allowance + _SMALL, in_doubt)
        try:
            async with asyncio.timeout(seconds):
                reply = await connection.ask(line, pending)
        except TimeoutError as error:
            await connection.close(f"{self.user}'s deputy did not answer in {seconds:g} s", kill=True)
            raise _lost(f"{self.user}'s deputy did not answer in {seconds:g} s", in_doubt) from error
        try:
            if "error" in reply:
                _expect(set(reply) == {"error"})
                refusal = _refusal(reply["error"])
                if refusal.kind == "Failed" and in_doubt:
                    raise AnswerLost(refusal.message)
                raise error_of(refusal)
            _expect(set(reply) == {"ok"} and isinstance(reply["ok"], dict))
            return parse(reply["ok"])
        except _NONSENSE as error:
            await connection.close(f"{self.user}'s deputy answers nonsense", kill=True)
            raise _lost(f"{self.user}'s deputy answers nonsense", in_doubt) from error

    async def _connected(self) -> _Connection:
        async with self._starting:
            await self._look_at_account()
            connection = self._connection
            # Not one that may be about to end: what it would be asked for could get lost.
            if connection is not None and (connection.ended or connection.idle_for > self._idle * 0.8):
                await connection.close("it was idle")
                connection = None
            if connection is None:
                connection = await self._started()
            self._connection = connection
            return connection

    async def _look_at_account(self) -> None:
        """End a deputy whose account is no more, or another one by now, or may not be acted for any more."""
        connection = self._connection
        if connection is None or connection.ended or time.monotonic() - self._looked_at < _ACCOUNT_SECONDS:
            return
        try:
            same = await self._found() == self._account
        except AccountRefused:
            await connection.close(f"{self._user} may not be acted for any more")
            raise
        if not same:
            await connection.close("its account was changed")

    async def _found(self) -> Account:
        if self._how.for_others:
            account = await asyncio.to_thread(find_account, self._user, rules=self._rules)
        else:
            account = await asyncio.to_thread(known_account, self._user)
        self._looked_at = time.monotonic()
        return account

    async def _started(self) -> _Connection:
        account = self._account = await self._found()
        connection = await _Connection.open(self._how.start(account), self._how.hint)
        try:
            async with asyncio.timeout(_SLACK_SECONDS):
                greeting = await connection.greeting()
                self._check(greeting, account)
                await connection.send(json.dumps({"hello": self._hello}).encode() + b"\n")
        except (*_NONSENSE, TimeoutError, ConnectionError, EOFError) as error:
            said = await connection.last_words()
            await connection.close("it did not start", kill=True)
            raise ClusterUnreachable(
                f"{self._user}'s deputy did not start{f': {said}' if said else ''}",
                where=self._how.place,
                hint=self._how.hint,
            ) from error
        except BaseException:
            await connection.close("it is not who it should be", kill=True)
            raise
        connection.listen()
        return connection

    def _check(self, greeting: Mapping[str, Any], account: Account) -> None:
        version = greeting["deputy"]
        _expect(type(version) is int)
        if version != deputy.PROTOCOL_VERSION:
            raise ClusterUnreachable(
                f"the deputy that is installed there speaks version {version} of its protocol, this worker version "
                f"{deputy.PROTOCOL_VERSION}",
                where=self._how.place,
                hint="install the worker's own: jobbergate-flows worker install-deputy",
            )
        if (greeting["user"], greeting["uid"]) != (account.name, account.uid):
            raise ClusterUnreachable(
                f"a deputy for {account.name} ({account.uid}) was started as {str(greeting['user'])[:100]!r}"
                f" ({str(greeting['uid'])[:20]})",
                where=self._how.place,
                hint=self._how.hint,
            )


def plain_to(value: Any) -> Any:
    """A value as JSON can say it; `applications/child/plain.py` gives it back.

    Raises:
        RequestRefused: It has a type that neither JSON nor YAML has.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [plain_to(entry) for entry in value]
        case dict():
            return {"dict": [[plain_to(key), plain_to(entry)] for key, entry in value.items()]}
        case tuple():
            return {"tuple": [plain_to(entry) for entry in value]}
        case set():
            return {"set": [plain_to(entry) for entry in value]}
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"datetime": value.isoformat()}
        case date():
            return {"date": value.isoformat()}
    raise RequestRefused(f"a {type(value).__name__} cannot be handed to a deputy")


_SLACK_SECONDS = 20.0
# A deputy that is always in use would otherwise outlive its account, or its place in the allowed group.
_ACCOUNT_SECONDS = 60.0
_SMALL = 64 << 10
_MAX_LINE = 96 << 20
_ENDING_SECONDS = 3.0
_STARTING_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}


class _Nonsense(Exception):
    pass


_NONSENSE = (_Nonsense, ValueError, TypeError, KeyError, OverflowError, RecursionError)


@dataclass(slots=True)
class _Pending:
    """A request without an answer yet: `allowance` bytes may come, and `in_doubt` says what its loss means."""

    reply: asyncio.Future[dict[str, Any]] = field(repr=False)
    allowance: int
    in_doubt: bool


class _Connection:
    """One deputy process, and what it was asked for."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        complaints: asyncio.StreamReader,
        complaints_writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._complaints_writer = complaints_writer
        self._pending: dict[int, _Pending] = {}
        self._buffer = bytearray()
        self._count = 0
        self._said = b""
        self._listening: asyncio.Task[None] | None = None
        self._complaining = asyncio.create_task(self._collect(complaints))
        self.ended = False
        self.used_at = time.monotonic()

    @classmethod
    async def open(cls, start: Start, hint: str) -> _Connection:
        """Start the process.

        Raises:
            ClusterUnreachable
        """
        # Sockets, because asyncio then needs nothing of the process: one that belongs to sudo cannot be killed.
        ours, theirs = socket.socketpair()
        our_complaints, their_complaints = socket.socketpair()
        try:
            process = await asyncio.to_thread(_popen, start, theirs, their_complaints)
        except OSError as error:
            ours.close()
            our_complaints.close()
            raise ClusterUnreachable(
                f"the deputy cannot be started: {error.strerror}", where=start.arguments[0], hint=hint
            ) from error
        finally:
            theirs.close()
            their_complaints.close()
        return cls(
            process,
            *await asyncio.open_connection(sock=ours),
            *await asyncio.open_connection(sock=our_complaints),
        )

    @property
    def idle_for(self) -> float:
        """For how many seconds nobody has asked for anything."""
        return 0.0 if self._pending else time.monotonic() - self.used_at

    async def greeting(self) -> dict[str, Any]:
        """What it says first."""
        return _object(await self._line(lambda: _SMALL))

    async def send(self, line: bytes) -> None:
        """Send a whole line."""
        self._writer.write(line)
        await self._writer.drain()

    def listen(self) -> None:
        """Take answers from now on."""
        self._listening = asyncio.create_task(self._listen())

    async def ask(self, line: bytes, pending: _Pending) -> dict[str, Any]:
        """Send a request (without its number), and wait for its answer.

        Raises:
            ClusterUnreachable, AnswerLost
        """
        if self.ended:
            raise ClusterUnreachable("the deputy has ended")
        self._count += 1
        self._pending[self._count] = pending
        with contextlib.suppress(ConnectionError):
            # That nobody reads it is told by whoever listens.
            await self.send(b'{"id": %d, ' % self._count + line[1:] + b"\n")
        return await pending.reply

    async def last_words(self) -> str:
        """What it complained of, in one line, when it is ending."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_SECONDS):
                await asyncio.shield(self._complaining)
        return _printable(self._said.decode(errors="replace"))[-500:]

    async def close(self, why: str, *, kill: bool = False) -> None:
        """End it, and tell all who wait. It brings a submission that it has begun to its end, unless it is killed."""
        if self.ended:
            return
        self.ended = True
        for pending in self._pending.values():
            if not pending.reply.done():
                pending.reply.set_exception(_lost(why, pending.in_doubt))
                # Whoever gave up waiting does not look at it.
                pending.reply.exception()
        self._pending.clear()
        for task in (self._listening, self._complaining):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for writer in (self._writer, self._complaints_writer):
            writer.close()
        if kill:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self._process.kill()
        await asyncio.to_thread(_reap, self._process)

    async def _listen(self) -> None:
        try:
            while True:
                message = _object(await self._line(self._allowance))
                request_id = message.pop("id")
                pending = self._pending.pop(request_id, None) if type(request_id) is int else None
                if pending is None:
                    raise _Nonsense(f"an answer to nothing that was asked: {_printable(str(message))[:200]}")
                if not pending.reply.done():
                    pending.reply.set_result(message)
                self.used_at = time.monotonic()
        except (EOFError, ConnectionError):
            await self.close("the deputy has ended")
        except _NONSENSE as error:
            why = f"the deputy answers nonsense: {_printable(str(error))[:300]}"
            _logger.warning("%s", why)
            await self.close(why, kill=True)

    async def _line(self, allowance: Callable[[], int]) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > allowance():
                raise _Nonsense("an answer is larger than it may be")
            piece = await self._reader.read(1 << 18)
            if not piece:
                raise EOFError
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _allowance(self) -> int:
        return min(_SMALL + sum(pending.allowance for pending in self._pending.values()), _MAX_LINE)

    async def _collect(self, complaints: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await complaints.read(1 << 16):
                self._said = (self._said + piece)[-4000:]


def _popen(start: Start, talk: socket.socket, complaints: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        start.arguments,
        stdin=talk.fileno(),
        stdout=talk.fileno(),
        stderr=complaints.fileno(),
        env=_STARTING_ENVIRONMENT,
        cwd="/",
        umask=0o077,
        start_new_session=True,
        close_fds=True,
        user=start.user,
        group=start.group,
        extra_groups=start.groups,
    )


_leaving: list[subprocess.Popen[bytes]] = []


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process whose input has ended; one that takes longer is looked after when others end."""
    for other in _leaving.copy():
        if other.poll() is not None:
            with contextlib.suppress(ValueError):
                _leaving.remove(other)
    try:
        process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        _leaving.append(process)


def _lost(why: str, in_doubt: bool) -> Exception:
    return AnswerLost(why) if in_doubt else ClusterUnreachable(why)


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    _expect(isinstance(value, dict))
    return dict(value)


def _expect(holds: bool) -> None:
    if not holds:
        raise _Nonsense("an answer of another shape than was asked for")


def _nothing(ok: Mapping[str, Any]) -> None:
    _expect(ok == {})


def _ended(ok: Mapping[str, Any]) -> deputy.Ended:
    code, why = ok["code"], ok["why"]
    stdout, stderr = (base64.b64decode(ok[name], validate=True) for name in ("stdout", "stderr"))
    _expect(why in ("time", "output", "stopped") if code is None else why is None)
    _expect(code is None or (type(code) is int and abs(code) < 1 << 16))
    return deputy.Ended(stdout, stderr, code, why)


def _entry(path: str, size: int, changed: float) -> FileEntry:
    _expect(isinstance(path, str) and type(size) is int and 0 <= size < 1 << 62 and type(changed) in (int, float))
    _expect(path != "" and not path.startswith("/") and ".." not in PurePosixPath(path).parts)
    try:
        return FileEntry(path, size, datetime.fromtimestamp(changed, UTC))
    except OSError as error:
        raise _Nonsense("a time that is none") from error


def _refusal(said: Any) -> deputy.Refused:
    _expect(isinstance(said, dict) and set(said) == {"kind", "message", "where", "hint"})
    kind, message, where, hint = said["kind"], said["message"], said["where"], said["hint"]
    _expect(isinstance(kind, str) and isinstance(message, str))
    _expect(all(text is None or isinstance(text, str) for text in (where, hint)))
    where, hint = (None if text is None else _printable(text)[:1000] for text in (where, hint))
    return deputy.Refused(kind, _printable(message)[:2000], where, hint)


def _printable(text: str) -> str:
    """The text in one line, without what a terminal or a log would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
