"""The separate process: reads requests as JSON lines from its standard input, answers as JSON lines on a descriptor.

What the application prints goes nowhere: it cannot break the answers.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    """Serve one request."""
    answers_to = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    os.set_inheritable(answers_to.fileno(), False)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)

    def say(message: dict[str, Any]) -> None:
        answers_to.write(json.dumps(message) + "\n")
        answers_to.flush()

    request = json.loads(requests.readline())
    limit(request["limits"])
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from problem import Problem

    try:
        say({"done": serve(request, say, requests)})
    except Problem as error:
        say({"error": [error.kind, error.message, error.where, error.hint]})
    except MemoryError:
        say({"error": ["LimitExceeded", "the application took more memory than it may", None, None]})
    except TypeError as error:
        say({"error": ["InterviewError", f"a value is none that can be passed on: {error}", "jobbergate.py", None]})
    except RecursionError as error:
        say({"error": ["LimitExceeded", f"the application went too deep: {error}", None, None]})


def limit(limits: dict[str, Any]) -> None:
    """Take the limits on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["output"], limits["output"]))
    seconds = int(limits["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def serve(request: dict[str, Any], say: Any, requests: Any) -> dict[str, Any]:
    """Do what is asked for."""
    import explore
    import workflow

    folder, config = request["folder"], request["config"]
    if request["do"] == "describe":
        return explore.explore(folder, config)
    # The application may change its configuration.
    application = workflow.load(folder, copy.deepcopy(config))
    given = dict(request["answers"])
    used: set[str] = set()
    if request["do"] == "interview":

        def ask_parent(question: Any, known: dict[str, Any], default: Any) -> Any:
            return asked(question, known, default, given, used, request["fast"], say, requests)

        workflow.run(application, folder, ask_parent)
        refuse_unknown(request, given, used)
        return {"answers": given}
    parameters = workflow.run(
        application, folder, lambda question, known, default: answered(question, known, default, given, used)
    )
    refuse_unknown(request, given, used)
    return rendered(request, parameters)


def answered(question: Any, known: dict[str, Any], default: Any, given: dict[str, Any], used: set[str]) -> Any:
    """The answer from the mapping, else the default."""
    from problem import Problem

    name = question.variablename
    used.add(name)
    value = given.get(name, default)
    if value is None:
        raise Problem(
            "MissingAnswer",
            f"the question {name!r} ({question.said(known)}) has no answer and no default",
            f"answers.{name}",
            f"answer it: {name}=...",
        )
    try:
        return question.convert(value)
    except ValueError as error:
        whose = "" if name in given else " (the default)"
        raise Problem(
            "BadAnswer", f"{value!r}{whose} {error}", f"answers.{name}", f"the question is: {question.said(known)}"
        ) from None


def asked(
    question: Any,
    known: dict[str, Any],
    default: Any,
    given: dict[str, Any],
    used: set[str],
    fast: bool,
    say: Any,
    requests: Any,
) -> Any:
    """The answer from the mapping, or from whoever is at the parent's terminal, until it is a good one."""
    from questions import describe

    name = question.variablename
    if name in given or (fast and default is not None):
        return answered(question, known, default, given, used)
    used.add(name)
    complaint = None
    while True:
        say({"ask": describe(question, known, default), "complaint": complaint})
        value = json.loads(requests.readline())["answer"]
        try:
            given[name] = question.convert(default if value is None else value)
        except ValueError as error:
            complaint = f"{value!r} {error}"
        else:
            return given[name]


def refuse_unknown(request: dict[str, Any], given: dict[str, Any], used: set[str]) -> None:
    """No answer may go astray."""
    import explore
    from problem import Problem

    if set(given) <= used:
        return
    # Answers to questions of other branches are no mistake.
    known = used | set(explore.explore(request["folder"], request["config"])["form"]["properties"])
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"the questions are {', '.join(sorted(known)) or 'none'}"
            if name in request["config"]["application_config"]:
                hint = "it is a default of jobbergate.yaml, which no question asks for; change it there"
            raise Problem("UnknownAnswer", f"there is no question {name!r}", f"answers.{name}", hint)


def rendered(request: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The job script and its supporting files."""
    from render import render

    folder = request["folder"]
    name = parameters.get("job_script_name")
    return {
        "name": str(name) if name else None,
        "text": render(folder, request["entrypoint"], parameters),
        "files": {output: render(folder, template, parameters) for template, output in request["supporting"].items()},
    }


if __name__ == "__main__":
    main()
