"""Who ends everything that an application's code has started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import threading

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def keep(lifeline: int, only_the_childs: int) -> None:
    """Go on in a child process, which this one keeps: it ends as the child ends, and nothing is left behind.

    All processes that the child starts end with it, those that leave its session too; and all end when the other
    end of `lifeline` is closed, as it is when whoever started this process is killed.

    Args:
        lifeline: A pipe's reading end.
        only_the_childs: A descriptor that this process must not hold open.
    """
    libc = ctypes.CDLL(None)
    # Processes whose parents have ended become children of this one.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        return
    os.close(only_the_childs)
    status = _wait(child, lifeline)
    _end_all()
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _wait(child: int, lifeline: int) -> int:
    """The child's status; once the lifeline is cut, that of a killed one."""
    ended, ends = os.pipe()
    os.set_blocking(ends, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ends, warn_on_full_buffer=False)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    # That the other end is closed is always told; what it says is for the child.
    waiting.register(lifeline, 0)
    while True:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == child:
                return found[1]
        ready = dict(waiting.poll())
        if lifeline in ready:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        if ended in ready:
            os.read(ended, 1 << 10)


def _end_all() -> None:
    children = f"/proc/self/task/{threading.get_native_id()}/children"
    while True:
        try:
            with open(children) as file:
                pids = [int(pid) for pid in file.read().split()]
        except FileNotFoundError:
            # A kernel that does not list them: at least those of this session's group.
            os.killpg(0, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
