"""`#SBATCH` lines: reading them as sbatch does, and adding to them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobbergate_flows.slurm.errors import OptionRefused

_SHORT = {
    "A": "account", "a": "array", "b": "begin", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks",
    "O": "overcommit", "o": "output", "p": "partition", "Q": "quiet", "q": "qos", "S": "core-spec",
    "s": "oversubscribe", "t": "time", "v": "verbose", "w": "nodelist", "W": "wait", "x": "exclude",
}  # fmt: skip
_FLAGS = {
    "hold", "no-kill", "overcommit", "oversubscribe", "exclusive", "requeue", "no-requeue", "contiguous",
    "verbose", "quiet", "wait", "spread-job", "use-min-nodes", "reboot", "ignore-pbs", "parsable", "test-only",
    "help", "usage", "version",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Directives:
    """What a script's `#SBATCH` lines say.

    `options` maps long option names (`ntasks`, `time`) to values; a flag's value is the empty string. Later lines
    win, as they do for sbatch. `raw` holds the lines' parameters as written.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    raw: tuple[str, ...] = ()


def parse_directives(script: str) -> Directives:
    """Read the `#SBATCH` lines of a script: those before its first command, as sbatch reads them."""
    raw = []
    for line in script.split("\n"):
        if line.startswith("#SBATCH"):
            raw.append(line.removeprefix("#SBATCH").strip())
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return parse_parameters(raw)


def parse_parameters(raw: Sequence[str]) -> Directives:
    """Read sbatch parameters, such as `--time=5` or `-p debug`, one text each."""
    options: dict[str, str] = {}
    for text in raw:
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            words = text.split()
        while words:
            word = words.pop(0)
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
            elif word.startswith("-") and len(word) > 1:
                name, value = _SHORT.get(word[1], word[1]), word[2:].removeprefix("=")
                equals = "=" if value else ""
            else:
                continue
            if not equals and name not in _FLAGS and words and not words[0].startswith("-"):
                value = words.pop(0)
            options[name] = value
    return Directives(options, tuple(raw))


def inject_sbatch_params(
    text: str, params: Sequence[str], header: str = "Sbatch params injected at rendering time"
) -> str:
    """Add `#SBATCH` lines to a script, before its first line that is neither empty nor a comment.

    Args:
        text: The script.
        params: sbatch parameters, such as `--time=5`. An empty list changes nothing.
        header: The comment above them.

    Raises:
        OptionRefused: A parameter that is no option, or that holds a line break or another control character.
    """
    if not params:
        return text
    for param in params:
        if not param.startswith("-") or re.search(r"[\x00-\x1f\x7f]", param):
            raise OptionRefused(
                f"{param!r} is no sbatch option",
                where="sbatch parameters",
                hint="write options as --name=value, each on one line",
            )
    lines = "".join(f"#SBATCH {param}\n" for param in params)
    block = f"# {header}\n{lines}\n"
    match = re.search(r"^[^#\n]", text, flags=re.MULTILINE)
    if match is None:
        return text + ("" if text.endswith("\n") or not text else "\n") + block
    return text[: match.start()] + block + text[match.start() :]
