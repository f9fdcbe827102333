"""An application's own code does no harm to whoever renders it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from jobbergate_flows.applications import (
    Application,
    ApplicationError,
    InterviewError,
    LimitExceeded,
    Limits,
    RenderingError,
)
from tests.applications.conftest import SHOWN, Make, parameters
from tests.cluster.waiting import wait_until

QUICK = Limits(seconds=0.7)


def doing(make: Make, code: str, **options: Any) -> Application:
    """An application that does something in its first step; what it leaves in `data` is shown.

    `ANSWERS` is the descriptor of what its process says to us.
    """
    lines = "\n    ".join(("import os, sys, signal, time", "ANSWERS = 3", *code.splitlines()))
    return make(
        steps=f"def mainflow(self, data):\n    {lines}\n    return []",
        script=SHOWN,
        **options,
    )


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        # The second where it ends between the opening and the reading of the file.
        return False
    return state != "Z"


# Their end, long after the limit, is for the test's sake: without the limit it fails, and does not hang.
@pytest.mark.parametrize(
    "code",
    ["while time.monotonic() < end: pass", "time.sleep(20)",
     "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile time.monotonic() < end: time.sleep(1)",
     "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\ntime.sleep(20)"],
)  # fmt: skip
def test_code_without_an_end_is_ended(make: Make, code: str) -> None:
    application = doing(make, f"end = time.monotonic() + 20\n{code}")

    for use in (application.render, application.describe, application.interview):
        with pytest.raises(LimitExceeded, match=r"took longer than 0\.7 s") as caught:
            use(limits=QUICK)
        assert "loop without an end" in str(caught.value.hint)


def test_without_other_limits_code_has_thirty_seconds_and_a_gibibyte(make: Make) -> None:
    kinds = "resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU"
    code = f"import resource\ndata['x'] = [resource.getrlimit(kind)[0] for kind in ({kinds})]"

    assert parameters(doing(make, code)) == {"x": [1 << 30, 16 << 20, 31]}
    # A test of half a minute would say no more than this.
    assert Limits() == Limits(seconds=30, memory=1 << 30, output=16 << 20, processes=64)


def test_code_between_two_questions_is_ended_too(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                data["nextworkflow"] = "second"
                return [Text("x")]

            def second(self, data):
                while True:
                    pass
        """
    )

    with pytest.raises(LimitExceeded, match=r"took longer than 0\.7 s"):
        application.interview(ask=lambda question, complaint: "a", limits=QUICK)


@pytest.mark.parametrize("code", ["b = bytearray(2 << 30)", "big = []\nwhile True: big.append(bytes(1 << 20))",
                                  "data['x'] = list(range(10**9))"])  # fmt: skip
def test_memory_is_bounded(make: Make, code: str) -> None:
    with pytest.raises(LimitExceeded, match="more memory than it may"):
        doing(make, code).render(limits=Limits(memory=256 << 20))


def test_memory_that_is_kept_at_the_end_is_bounded_too(make: Make) -> None:
    code = "import builtins\nbuiltins.big = []\nwhile True: builtins.big.append(bytes(1 << 12))"

    with pytest.raises(LimitExceeded, match="more memory than it may"):
        doing(make, code).render(limits=Limits(memory=256 << 20))


@pytest.mark.parametrize(
    ("script", "limits"),
    [("{{ 'x' * 10**10 }}", Limits(memory=256 << 20)), ("{{ 'x' * 40 * 2**20 }}", Limits())],
)
def test_a_template_is_bounded(make: Make, script: str, limits: Limits) -> None:
    with pytest.raises(LimitExceeded, match=r"memory|output is larger than 16777216 bytes"):
        make(script=script).render(limits=limits)


@pytest.mark.parametrize(
    "code",
    [
        "print('x' * 100)\nsys.stdout.flush()\nos.write(1, b'{}\\n')\nos.write(2, b'x' * (1 << 20))",
        "print('x' * (64 << 20))",
        "sys.stdout.close()\nsys.stderr.close()",
        "os.close(0)\nos.close(1)",
        "input_ = sys.stdin.read()",
        "import warnings\nwarnings.simplefilter('error')",
        "os.chdir('/')",
        "sys.argv.clear()\nsys.path.clear()",
    ],
)
def test_what_the_code_prints_and_closes_disturbs_nothing(make: Make, code: str) -> None:
    assert parameters(doing(make, f"{code}\ndata['x'] = 1")) == {"x": 1}


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("sys.exit(3)", InterviewError, "mainflow failed: SystemExit: 3"),
        ("raise KeyboardInterrupt", InterviewError, "mainflow failed: KeyboardInterrupt"),
        ("os._exit(0)", ApplicationError, r"ended the process that it ran in \(exit code 0\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ApplicationError, r"ended the process that it ran in \(signal 9\)"),
        ("os.abort()", ApplicationError, r"ended the process that it ran in \(signal 6"),
        ("os.write(ANSWERS, b'nonsense\\n')", ApplicationError, "what is no answer"),
        ("os.write(ANSWERS, b'[]\\n')", ApplicationError, "what is no answer"),
        ("os.write(ANSWERS, b'{\"ask\": {}}\\n')", ApplicationError, "what is no answer"),
        ("os.write(ANSWERS, b'{\"done\": 1}\\n')", ApplicationError, "what is no answer"),
        ("os.write(ANSWERS, b'{\"done\": {}}\\n')", ApplicationError, "what is no answer"),
        (
            'os.write(ANSWERS, b\'{"done": {"text": 5, "name": 5, "files": 5}}\\n\')',
            ApplicationError,
            "what is no answer",
        ),
        ("os.close(ANSWERS)", ApplicationError, "ended the process"),
        ("x = open('big', 'wb')\nx.write(b'x' * (20 << 20))", InterviewError, "File too large"),
        ("raise Exception('x' * 10**6)", InterviewError, "mainflow failed: Exception: xxx"),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", ApplicationError, "ZeroDivisionError"),
        ("data[5] = object()\ndata['y'] = data", ApplicationError, "ValueError|TypeError|InterviewError|keywords"),
    ],
)
def test_code_that_ends_or_confuses_its_process_is_an_error_of_the_application(
    make: Make, code: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        doing(make, code).render()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", ["../escape", "/tmp/escape", "a/../../escape", ""])
def test_a_forged_answer_names_no_file_outside_of_the_runs_directory(make: Make, path: str) -> None:
    answer = json.dumps({"done": {"text": "#!/bin/sh\n", "name": "x", "files": {path: "x"}}})

    with pytest.raises(RenderingError, match="outside the run's directory"):
        doing(make, f"os.write(ANSWERS, {answer.encode()!r} + b'\\n')").render()


def test_a_flood_of_answers_is_cut_off(make: Make) -> None:
    code = "flood = b'x' * (1 << 20)\nwhile True: os.write(ANSWERS, flood)"

    with pytest.raises(LimitExceeded, match="output is larger than 1048576 bytes"):
        doing(make, code).render(limits=Limits(output=1 << 20))


@pytest.mark.parametrize("leaving", ["pass", "os.setsid()", "os.setsid()\n    if os.fork(): os._exit(0)"])
def test_a_process_left_behind_holds_nothing_up_and_is_ended(make: Make, tmp_path: Path, leaving: str) -> None:
    note = tmp_path / "process"
    code = f"""
if os.fork() == 0:
    {leaving}
    with open({str(note)!r} + '.new', 'w') as file: file.write(str(os.getpid()))
    os.rename({str(note)!r} + '.new', {str(note)!r})
    signal.pause()
while not os.path.exists({str(note)!r}): time.sleep(0.01)
"""

    assert parameters(doing(make, f"{code}\ndata['x'] = 1")) == {"x": 1}
    assert not alive(int(note.read_text()))

    note.unlink()
    with pytest.raises(ApplicationError, match="ended the process"):
        doing(make, f"{code}\nos._exit(1)").render()
    assert not alive(int(note.read_text()))

    note.unlink()
    with pytest.raises(LimitExceeded):
        # Time enough to leave a process behind.
        doing(make, f"{code}\nwhile True: pass").render(limits=Limits(seconds=3))
    assert not alive(int(note.read_text()))


def test_the_code_ends_with_whoever_renders_it(make: Make, tmp_path: Path) -> None:
    note = tmp_path / "process"
    code = f"with open({str(note)!r}, 'w') as file: file.write(f'{{os.getpid()}}\\n')\nwhile True: time.sleep(1)"
    program = (
        "import sys; from jobbergate_flows.applications import Application; Application.load(sys.argv[1]).render()"
    )
    folder = doing(make, code).source
    with subprocess.Popen([sys.executable, "-c", program, folder]) as renderer:
        wait_until(lambda: note.exists() and note.read_text().endswith("\n"), 30, "the application's process")
        renderer.kill()
        renderer.wait()
        wait_until(lambda: not alive(int(note.read_text())), 10, "the end of the application's process")


def test_processor_time_is_limited_for_all_threads_together(make: Make) -> None:
    code = "import resource\ndata['x'] = resource.getrlimit(resource.RLIMIT_CPU)[0]"
    assert parameters(doing(make, code), limits=Limits(seconds=7)) == {"x": 8}

    with pytest.raises(LimitExceeded, match="took longer than"):
        doing(make, "os.kill(os.getpid(), signal.SIGXCPU)").render()


def test_other_programs_can_be_asked(make: Make) -> None:
    code = "import subprocess\ndata['x'] = subprocess.run(['echo', 'there'], capture_output=True, text=True).stdout"

    assert parameters(doing(make, code)) == {"x": "there\n"}


def test_the_environment_holds_no_secrets(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/secret")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    code = "data['x'] = dict(os.environ)\ndata['above'] = open(f'/proc/{os.getppid()}/environ').read()"
    found = parameters(doing(make, code))

    assert "secret" not in found["above"]
    assert set(found["x"]) <= {"PATH", "LC_ALL", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}


def test_nothing_of_this_process_is_open_in_the_other(make: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("")
    with secret.open() as file:
        os.set_inheritable(file.fileno(), True)
        opened = parameters(
            doing(make, "data['x'] = [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]")
        )

    assert str(secret) not in opened["x"]


def test_the_code_works_on_a_copy_that_is_removed(make: Make) -> None:
    application = doing(
        make,
        "open('new', 'w').close()\nos.remove('README.md')\nos.mkdir('closed')\nos.chmod('closed', 0)\n"
        "data['x'] = [os.getcwd(), sorted(os.listdir())]",
        files={"README.md": "here"},
    )
    before = application.digest

    folder, names = parameters(application)["x"]

    assert names == ["closed", "jobbergate.py", "jobbergate.yaml", "new", "templates"]
    assert Path(folder).is_relative_to(Path(tempfile.gettempdir()).resolve())
    assert not Path(folder).exists()
    assert Application.from_path(application.source).digest == before


def test_the_session_is_its_own(make: Make) -> None:
    session, group = parameters(doing(make, "data['x'] = [os.getsid(0), os.getpgid(0)]"))["x"]

    assert session == group
    assert session != os.getsid(0)


def test_the_process_imports_nothing_that_is_slow(make: Make) -> None:
    modules = parameters(doing(make, "data['x'] = sorted(sys.modules)"))["x"]

    assert not {"pydantic", "prefect", "yaml", "asyncio", "sqlalchemy", "httpx"} & set(modules)


def test_the_layer_imports_no_prefect() -> None:
    program = "import json, sys, jobbergate_flows.applications.terminal; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not [name for name in json.loads(done.stdout) if name.partition(".")[0] in ("prefect", "fastapi", "httpx")]
