"""Where a job's output goes: sbatch's file name patterns, resolved at submission.

Slurm 22.05's sacct does not know these paths.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping


def output_paths(
    options: Mapping[str, str], *, directory: str, job_id: str, job_name: str, user: str, array: bool
) -> tuple[str, str]:
    """The absolute paths of standard output and standard error.

    Args:
        options: Long sbatch options (`output`, `error`) of directives and arguments together.
        directory: The job's working directory, for relative patterns.
        array: For an array, `%a` is left for the task's number.

    Returns:
        Both; the same path twice where standard error goes where the output goes. A `%N`, or an array's `%j`, stays as
        it is: such a file cannot be found from the pattern alone.
    """
    default = "slurm-%A_%a.out" if array else "slurm-%j.out"
    values = {"A": job_id, "u": user, "x": job_name, "n": "0", "s": "batch", "t": "0", "%": "%"}
    if not array:
        # Measured on 22.05: without an array, %a is Slurm's "no value".
        values |= {"j": job_id, "J": job_id, "a": "4294967294"}

    def resolve(pattern: str) -> str:
        # sbatch takes a pattern with a backslash literally.
        literal = "\\" in pattern
        text = pattern.replace("\\", "") if literal else re.sub(r"%([0-9]*)([A-Za-z%])", put, pattern)
        return posixpath.join(directory, text)

    def put(match: re.Match[str]) -> str:
        # Of a node's name (%N), and of an array task's number (%a) and own id (%j), only Slurm knows.
        value = values.get(match[2], match[0])
        return value.zfill(min(int(match[1]), 10)) if match[1] and value.isascii() and value.isdigit() else value

    output = resolve(options.get("output") or default)
    error = resolve(options["error"]) if options.get("error") else output
    return output, error


def task_path(path: str, task: int | None) -> str:
    """The path of one array task: `%a` (or `%3a`) replaced by its number; for no array the path itself."""
    if task is None:
        return path
    return re.sub(r"%([0-9]*)a", lambda match: str(task).zfill(min(int(match[1] or 0), 10)), path)
