"""Runs one local job, or all tasks of a local array, and writes down what becomes of it.

Started by `LocalCluster` as a process of its own (`python -I local_runner.py JOB_FOLDER`) that outlives whoever submitted
the job. Standard library only. `job.json` says what to run; `state.json` is this program's to write; a file `cancel`,
made by `LocalCluster`, with the uid of who wants it, and SIGTERM, ask for the end.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time


def main(folder):
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    tasks = job["tasks"]
    state = {
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "tasks": {task_key(task): {"state": "PENDING"} for task in tasks},
    }
    cancelled = []

    def save():
        path = os.path.join(folder, "state.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(state, file)
        os.replace(path + ".new", path)

    signal.signal(signal.SIGTERM, lambda *_: cancelled.append(True))
    save()
    waiting, running = list(tasks), {}
    while waiting or running:
        if cancelled or os.path.exists(os.path.join(folder, "cancel")):
            for task in waiting:
                state["tasks"][task_key(task)] = {
                    "state": "CANCELLED",
                    "by": canceller(folder),
                    "end": time.time(),
                }
            waiting = []
            for process, _deadline, task in running.values():
                state["tasks"][task_key(task)]["cancelled"] = canceller(folder)
                end_group(process, job["kill_wait"])
            save()
        while waiting and len(running) < job["parallel"]:
            task = waiting.pop(0)
            process = start(job, task)
            deadline = time.monotonic() + job["limit"] if job["limit"] else None
            running[process.pid] = (process, deadline, task)
            state["tasks"][task_key(task)] = {"state": "RUNNING", "start": time.time(), "pid": process.pid}
            save()
        for pid, (process, deadline, task) in list(running.items()):
            entry = state["tasks"][task_key(task)]
            if process.poll() is None:
                if deadline is not None and time.monotonic() > deadline:
                    entry["timed_out"] = True
                    end_group(process, job["kill_wait"])
                else:
                    continue
            del running[pid]
            code = process.returncode
            entry["end"] = time.time()
            entry["code"], entry["signal"] = (code, 0) if code >= 0 else (0, -code)
            if "cancelled" in entry:
                entry["state"], entry["by"] = "CANCELLED", entry["cancelled"]
            elif entry.get("timed_out"):
                entry["state"] = "TIMEOUT"
            else:
                entry["state"] = "COMPLETED" if code == 0 else "FAILED"
            save()
        if running:
            time.sleep(0.05)


def start(job, task):
    environment = dict(job["environment"])
    if task is not None:
        environment["SLURM_ARRAY_TASK_ID"] = str(task)
    output = job["output"] if task is None else with_task(job["output"], task)
    error = job["error"] if task is None else with_task(job["error"], task)
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if job["append"] else os.O_TRUNC)
    try:
        out = os.open(output, flags, 0o600)
        err = out if error == output else os.open(error, flags, 0o600)
    except OSError:
        # As Slurm's: a job whose output cannot be opened fails.
        return subprocess.Popen(["false"], start_new_session=True)
    try:
        return subprocess.Popen(
            [job["script"]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=job["directory"],
            env=environment,
            start_new_session=True,
        )
    except OSError as problem:
        os.write(err, f"cannot start the script: {problem}\n".encode())
        return subprocess.Popen(["false"], start_new_session=True)
    finally:
        os.close(out)
        if err != out:
            os.close(err)


def with_task(path, task):
    return re.sub(r"%(\d*)a", lambda match: str(task).zfill(int(match.group(1) or 0)), path)


def end_group(process, wait):
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
        break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def canceller(folder):
    try:
        with open(os.path.join(folder, "cancel"), encoding="utf-8") as file:
            return int(file.read())
    except (OSError, ValueError):
        return os.getuid()


def process_start(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields: list[str] = file.read().rsplit(")", 1)[1].split()
    return fields[19]


def task_key(task):
    return "" if task is None else str(task)


if __name__ == "__main__":
    main(sys.argv[1])
