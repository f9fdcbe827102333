"""`#SBATCH` lines: reading them as sbatch does, and adding to them."""

from __future__ import annotations

import re
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
# Their value only ever follows an equals sign.
_OPTIONAL = {"exclusive", "get-user-env", "nice", "no-kill", "propagate"}
_WITH_VALUE = {
    "acctg-freq", "batch", "bb", "bbf", "cluster", "cluster-constraint", "comment", "container", "container-id",
    "cores-per-socket", "cpu-freq", "cpus-per-gpu", "deadline", "delay-boot", "exclude", "export", "export-file",
    "extra", "extra-node-info", "gid", "gpu-bind", "gpu-freq", "gpus-per-node", "gpus-per-socket", "gpus-per-task",
    "gres", "gres-flags", "hint", "kill-on-invalid-dep", "mail-type", "mail-user", "mcs-label", "mem", "mem-bind",
    "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node",
    "ntasks-per-socket", "open-mode", "oom-kill-step", "power", "prefer", "priority", "profile", "reservation",
    "segment", "signal", "sockets-per-node", "switches", "thread-spec", "threads-per-core", "time-min", "tmp",
    "tres-bind", "tres-per-task", "uid", "wait-all-nodes", "wckey", "workdir", "wrap",
}  # fmt: skip
KNOWN_OPTIONS = frozenset({*_SHORT.values(), *_FLAGS, *_OPTIONAL, *_WITH_VALUE, "resv-ports", "stepmgr", "external"})
"""The long options of sbatch in all its versions so far, also those that may not be asked for here."""


@dataclass(frozen=True, slots=True)
class Directives:
    """What a script's `#SBATCH` lines say.

    `options` maps long option names (`ntasks`, `time`) to values; a flag's value is the empty string. Later lines
    win, as they do for sbatch. `raw` holds the lines' parameters as written. `faults` says for what sbatch would refuse
    them, nearly in its words, where they cannot be read; of unknown options and of values it says nothing.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    raw: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def parse_directives(script: str) -> Directives:
    """Read the `#SBATCH` lines of a script: those before its first command, as sbatch reads them."""
    raw = []
    for line in script.split("\n"):
        if line.startswith("#SBATCH"):
            raw.append(line.removeprefix("#SBATCH").strip())
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return parse_parameters(raw)


def has_foreign_lines(script: str) -> bool:
    """Whether a script has `#PBS` or `#BSUB` lines: sbatch obeys some of what they say, and `parse_directives` none."""
    return any(line.startswith(("#PBS", "#BSUB")) for line in script.split("\n"))


def parse_parameters(raw: Sequence[str]) -> Directives:
    """Read sbatch parameters, such as `--time=5` or `-p debug`, one text each, quoted as in an `#SBATCH` line."""
    options: dict[str, str] = {}
    faults: list[str] = []
    for text in raw:
        words, fault = _split(text)
        read = parse_arguments(words)
        options |= read.options
        faults += [*fault, *read.faults]
    return Directives(options, tuple(raw), tuple(faults))


def parse_arguments(words: Sequence[str]) -> Directives:
    """Read sbatch's arguments as a command line has them: each a word of its own, quotes and blanks are the value's."""
    options: dict[str, str] = {}
    faults = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            faults += [_invalid(rest) for rest in waiting]
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = _in_full(name)
        elif word.startswith("-") and len(word) > 1:
            name, value = _SHORT.get(word[1], word[1]), word[2:]
            if name in _FLAGS | _OPTIONAL and value:
                # Flags of one letter may stand together: -Hn2.
                waiting.insert(0, f"-{value}")
                value = ""
            equals = value
        else:
            faults.append(_invalid(word))
            continue
        if not equals and name in KNOWN_OPTIONS - _FLAGS - _OPTIONAL and waiting:
            value = waiting.pop(0)
        options[name] = value
    return Directives(options, tuple(words), tuple(faults))


def inject_sbatch_params(
    text: str, params: Sequence[str], header: str = "Sbatch params injected at rendering time"
) -> str:
    """Add `#SBATCH` lines to a script, before its first line that is neither empty nor a comment.

    Args:
        text: The script.
        params: sbatch parameters, such as `--time=5`. An empty list changes nothing.
        header: The comment above them.

    Raises:
        OptionRefused: A parameter that is no option, that holds a line break or another control character, or that
            sbatch would not read.
    """
    if not params:
        return text
    for param in params:
        check_parameter(param, where="sbatch parameters")
    lines = "".join(f"#SBATCH {param}\n" for param in params)
    block = f"# {header}\n{lines}\n"
    match = re.search(r"^[^#\n]", text, flags=re.MULTILINE)
    if match is None:
        return text + ("" if text.endswith("\n") or not text else "\n") + block
    return text[: match.start()] + block + text[match.start() :]


def check_parameter(text: str, *, where: str | None = None) -> None:
    """Look whether a parameter can be a line of its own.

    Raises:
        OptionRefused: It is no option, holds a control character, or sbatch would not read it.
    """
    if not re.match(r"--?[A-Za-z]", text) or re.search(r"[\x00-\x1f\x7f]", text):
        raise OptionRefused(
            f"{text!r} is no sbatch option", where=where, hint="write options as --name=value, each on one line"
        )
    if faults := parse_parameters([text]).faults:
        raise OptionRefused(
            f"{text!r} is no sbatch option: {faults[0]}",
            where=where,
            hint='put a value with blanks in quotes, as --output="my job.out"',
        )


def quoted(value: str) -> str:
    """A value as one word of an `#SBATCH` line."""
    if re.fullmatch(r"[\w.,:/@%+=-]+", value):
        return value
    escaped = re.sub(r'([\\"])', r"\\\1", value)
    return f'"{escaped}"'


def _split(text: str) -> tuple[list[str], list[str]]:
    """The words of an `#SBATCH` line, and what is wrong with it.

    These are sbatch's own rules, not a shell's: a `#` outside of quotes begins a comment even within a word, a
    backslash takes the next character literally also within either quotes, and even so a blank outside of quotes ends
    the word.
    """
    words: list[str] = []
    rest = text.strip()
    while rest and rest[0] != "#":
        if rest[0] == ":":
            return words, [f"unexpected `:` in [{rest}]"]
        word, end, quote = _word(rest)
        if quote:
            return words, [f"unmatched `{quote}` in [{rest}]"]
        words.append(word)
        rest = rest[end:].lstrip()
    return words, []


def _word(text: str) -> tuple[str, int, str]:
    """The first word, where it ends, and the quote that is still open there."""
    word, quote, escaped = "", "", False
    for position, character in enumerate(text):
        if not quote and (character.isspace() or (character == "#" and not escaped)):
            return word, position, ""
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif quote:
            word, quote = (word, "") if character == quote else (word + character, quote)
        elif character in "\"'":
            quote = character
        else:
            word += character
    return word, len(text), quote


def _in_full(name: str) -> str:
    """The option that a name stands for: getopt takes beginnings of which there is only one."""
    if name in KNOWN_OPTIONS:
        return name
    meant = [option for option in KNOWN_OPTIONS if name and option.startswith(name)]
    return meant[0] if len(meant) == 1 else name


def _invalid(word: str) -> str:
    return f"invalid directive found: {word}"
