"""An application's own code in a separate process, with limits on time, memory and output."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from jobbergate_flows.applications.errors import BY_NAME, ApplicationError, LimitExceeded
from jobbergate_flows.slurm.deputy import Ended

_PROGRAM = Path(__file__).parent / "child" / "program.py"
_ENDING_SECONDS = 5.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an application's code may take.

    Args:
        seconds: Of time, between two questions to a person; once over, all its processes are killed.
        memory: Bytes of address space of each of its processes.
        output: Bytes that it may answer, which are its script and supporting files; also of each file it writes.
        processes: Processes and threads beside its own. Does not hold for root.
    """

    seconds: float = 30.0
    memory: int = 1 << 30
    output: int = 16 << 20
    processes: int = 64


Serve = Callable[[Mapping[str, Any], Mapping[str, bytes], Limits], Awaitable[Ended]]
"""Has a request served by `child/program.py` elsewhere (as another user, by a deputy), and says how that ended: the
request, the application's files, what it may take."""


def run_isolated(
    request: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    wants: Mapping[str, type | UnionType],
    limits: Limits | None = None,
    ask: Callable[[Mapping[str, Any], str | None], Any] | None = None,
) -> dict[str, Any]:
    """Have a request served by `child/program.py`, on a temporary copy of the application.

    The process has a session of its own and an environment of PATH and the locale only. What the application prints
    is dropped, what it warns of is logged. What it has started is killed at the end, and when this process is killed.
    The account is the same: this bounds and tidies, and hides nothing that the account's other processes can read.

    Args:
        request: `do`, and what the deed needs.
        files: The application's files.
        wants: What the answer holds, and its types: the application's code could write one too.
        limits: What it may take.
        ask: Answers a question (as `child/questions.py` describes it); gets the complaint about the answer before.

    Raises:
        ApplicationError: What is wrong with the application or the answers.
        LimitExceeded: It took too long, too much memory, or said too much.
    """
    limits = limits or Limits()
    with _copied(files) as folder, _Child(folder, limits) as child:
        child.send({**request, "folder": str(folder), "limits": asdict(limits)})
        while True:
            message = child.receive()
            match message:
                case {"ask": dict() as question} if ask is not None:
                    child.send(ask(question, message.get("complaint")))
                case _:
                    return _done(message, wants)


async def run_elsewhere(
    serve: Serve,
    request: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    wants: Mapping[str, type | UnionType],
    limits: Limits | None = None,
) -> dict[str, Any]:
    """`run_isolated`, with the process where `serve` has it. Nobody can be asked then."""
    limits = limits or Limits()
    ended = await serve(request, files, limits)
    if ended.why == "time":
        raise _too_long(limits)
    if ended.why == "output":
        raise _too_much(limits)
    line, whole, _ = ended.stdout.partition(b"\n")
    if not whole:
        raise _without_answer(ended.code, ended.stderr, limits)
    return _done(_message(line), wants)


def nonsense() -> ApplicationError:
    """What is said of an answer that is none."""
    return ApplicationError("the application's process answers with what is no answer", where="jobbergate.py")


# What the process said


def _done(message: Mapping[str, Any], wants: Mapping[str, type | UnionType]) -> dict[str, Any]:
    match message:
        case {"done": dict() as done} if all(isinstance(done.get(name), wants[name]) for name in wants):
            warnings = message.get("warnings")
            for warning in warnings if isinstance(warnings, list) else ():
                _logger.warning("%s", warning)
            return done
        case {"error": [str() as kind, str() as said, (str() | None) as where, (str() | None) as hint]}:
            raise BY_NAME.get(kind, ApplicationError)(said, where=where, hint=hint)
    raise nonsense()


def _message(line: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise nonsense() from error
    if not isinstance(message, dict):
        raise nonsense()
    return message


def _too_long(limits: Limits) -> LimitExceeded:
    return LimitExceeded(
        f"the application took longer than {limits.seconds:g} s",
        hint="look for a loop without an end in jobbergate.py or a template",
    )


def _too_much(limits: Limits) -> LimitExceeded:
    return LimitExceeded(f"the application's output is larger than {limits.output} bytes", hint="render less text")


def _without_answer(code: int | None, stderr: bytes, limits: Limits) -> ApplicationError:
    if code == -signal.SIGXCPU:
        return _too_long(limits)
    last = " ".join(stderr.decode(errors="replace").strip().splitlines()[-1:])
    if "MemoryError" in last:
        return LimitExceeded("the application took more memory than it may")
    last = "".join(letter for letter in last if letter.isprintable())[:500]
    how = f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"
    return ApplicationError(
        f"the application ended the process that it ran in ({how}{f'; {last}' if last else ''})",
        where="jobbergate.py",
        hint="it must not end its process, as os._exit does",
    )


# The process


class _Child:
    def __init__(self, folder: Path, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0
        self._received = 0
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LC_ALL": "C.UTF-8",
                    # Numerical libraries start a thread for each core, each with address space of its own.
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                start_new_session=True,
            )
        except OSError as error:
            raise ApplicationError(f"the application's process cannot be started: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin, self._stdout, self._stderr = self._process.stdin, self._process.stdout, self._process.stderr

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_error: object) -> None:
        # For the keeper this is the word to end everything.
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._stdout.close()
        self._stderr.close()

    def send(self, value: object) -> None:
        # That it is gone is seen, and said, when it is asked for what it has to say.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(pickle.dumps(value))
            self._stdin.flush()

    def receive(self) -> Mapping[str, Any]:
        """The next message.

        Raises:
            ApplicationError: The process has ended without one, or says what is none.
            LimitExceeded
        """
        deadline = time.monotonic() + self._limits.seconds
        said = b""
        answers, complaints = self._stdout.fileno(), self._stderr.fileno()
        waiting = select.poll()
        waiting.register(answers, select.POLLIN)
        waiting.register(complaints, select.POLLIN)
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            left = deadline - time.monotonic()
            if left <= 0:
                raise _too_long(self._limits)
            ended = self._process.poll() is not None
            # Processes that it has left behind may keep the pipe open after its end: so no waiting without an end.
            ready = dict(waiting.poll(0 if ended else min(left, 0.5) * 1000))
            if answers in ready:
                data = os.read(answers, 1 << 16)
                if not data:
                    raise self._ended(said)
                self._take(data)
            elif ended:
                raise self._ended(said)
            if complaints in ready:
                part = os.read(complaints, 1 << 16)
                said = (said + part)[-4000:]
                if not part:
                    waiting.unregister(complaints)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return _message(line)

    def _take(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._limits.output:
            raise _too_much(self._limits)
        self._buffer += data

    def _ended(self, said: bytes) -> ApplicationError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        return _without_answer(self._process.returncode, said, self._limits)


@contextlib.contextmanager
def _copied(files: Mapping[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jobbergate-application-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve() / "application"
        folder.mkdir()
        try:
            for path, content in files.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        except OSError as error:
            raise ApplicationError(
                f"the application's files cannot be written to a temporary folder: {error}"
            ) from error
        yield folder
