"""An application's own code in a separate process, with limits on time, memory and output."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobbergate_flows.applications.errors import BY_NAME, ApplicationError, LimitExceeded

_PROGRAM = Path(__file__).parent / "child" / "program.py"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an application's code may take: seconds of each step, bytes of memory, bytes of answers."""

    seconds: float = 30.0
    memory: int = 1 << 30
    output: int = 16 << 20


def run_isolated(
    request: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    limits: Limits | None = None,
    ask: Callable[[dict[str, Any], str | None], Any] | None = None,
) -> dict[str, Any]:
    """Run a request of `child/program.py` on a temporary copy of the application.

    Args:
        request: What to do.
        files: The application's files.
        limits: What it may take.
        ask: Answers a question (described as `child/questions.py` does) with the complaint about the answer before.

    Returns:
        What the request gives.

    Raises:
        ApplicationError: What the child found wrong.
        LimitExceeded: It took too long, too much memory, or said too much.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="jobbergate-application-") as name:
        folder = Path(name)
        application = folder / "application"
        for path, content in files.items():
            target = application / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        full = {
            **request,
            "folder": str(application),
            "limits": {"seconds": limits.seconds, "memory": limits.memory, "output": limits.output},
        }
        with _Child(application, limits) as child:
            child.send(full)
            while True:
                message = child.receive()
                if "done" in message:
                    done: dict[str, Any] = message["done"]
                    return done
                if "error" in message:
                    kind, said, where, hint = message["error"]
                    raise BY_NAME.get(kind, ApplicationError)(said, where=where, hint=hint)
                if ask is None:
                    raise ApplicationError("the application asks a question, and nobody is there to answer")
                child.send({"answer": ask(message["ask"], message["complaint"])})


class _Child:
    def __init__(self, folder: Path, limits: Limits) -> None:
        self._limits = limits
        self._buffer = b""
        self._received = 0
        self._answers, answers_in = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_PROGRAM), str(answers_in)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": str(folder)},
                pass_fds=(answers_in,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._answers)
            raise
        finally:
            os.close(answers_in)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._answers)
        for stream in (self._process.stdin, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._limits.seconds
        assert self._process.stderr is not None
        stderr = self._process.stderr.fileno()
        said = b""
        waiting = select.poll()
        waiting.register(self._answers, select.POLLIN)
        waiting.register(stderr, select.POLLIN)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LimitExceeded(
                    f"the application took longer than {self._limits.seconds:g} s",
                    hint="look for a loop without an end in jobbergate.py or a template",
                )
            for descriptor, _event in waiting.poll(left * 1000):
                data = os.read(descriptor, 1 << 16)
                if descriptor == stderr:
                    said = (said + data)[-4000:]
                    if not data:
                        waiting.unregister(stderr)
                    continue
                if not data:
                    raise self._ended(said)
                self._received += len(data)
                self._buffer += data
                if self._received > self._limits.output:
                    raise LimitExceeded(
                        f"the application's output is larger than {self._limits.output} bytes",
                        hint="render less text",
                    )
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _ended(self, said: bytes) -> ApplicationError:
        try:
            code = self._process.wait(2)
        except subprocess.TimeoutExpired:
            code = None
        if code == -signal.SIGXCPU or code == -signal.SIGKILL:
            return LimitExceeded(f"the application took longer than {self._limits.seconds:g} s of processor time")
        if code == -signal.SIGXFSZ:
            return LimitExceeded("the application wrote a file that is too large")
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        return ApplicationError(
            f"the application ended the process that it ran in (exit code {code})" + "".join(f": {t}" for t in last),
            where="jobbergate.py",
            hint="it must not call sys.exit or os._exit",
        )
