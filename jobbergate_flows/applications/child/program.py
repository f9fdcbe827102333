"""The separate process: one request in, its answer out.

The request comes pickled on standard input, as do the answers of a person. What is said back on standard output is one
JSON object a line; what the application prints goes nowhere, as its standard output is another.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import types
import warnings
from typing import Any

_OUT_OF_MEMORY = (
    b'{"error": ["LimitExceeded", "the application took more memory than it may", null,'
    b' "look for what grows without an end in jobbergate.py or a template"]}\n'
)
_MAX_WARNINGS = 20


def main() -> None:
    """Serve one request."""
    descriptor = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    _stand_in_for_packages()
    from jobbergate_flows.applications.child.keeper import keep

    keep(lifeline=0, only_the_childs=descriptor)
    requests = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as empty:
        os.dup2(empty.fileno(), 0)
    request = pickle.load(requests)
    _take_on(request["limits"])
    if "plain" in request:
        from jobbergate_flows.applications.child.plain import plain_from

        # What the deputy itself says of it holds.
        request = {**plain_from(request.pop("plain")), **request}
    from jobbergate_flows.applications.child.service import serve
    from jobbergate_flows.applications.errors import ApplicationError

    def say(message: dict[str, Any]) -> None:
        rest = memoryview(json.dumps(message, default=str).encode() + b"\n")
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    try:
        with warnings.catch_warnings(record=True) as caught:
            done = serve(request, say, lambda: pickle.load(requests))
        say({"done": done, "warnings": [str(entry.message) for entry in caught[:_MAX_WARNINGS]]})
        return
    except ApplicationError as error:
        message = {"error": [type(error).__name__, error.message, error.where, error.hint]}
    except MemoryError:
        message = None
    except Exception as error:
        message = {"error": ["ApplicationError", f"{type(error).__name__}: {error}", "jobbergate.py", None]}
    # Not in the handler: what its error holds on to is free by now.
    if message is None:
        os.write(descriptor, _OUT_OF_MEMORY)
    else:
        say(message)


def _take_on(limits: dict[str, Any]) -> None:
    seconds = int(limits["seconds"]) + 1
    # The system's own count bounds the user's from above: so many more processes, not so many in all.
    with open("/proc/loadavg") as loads:
        processes = int(loads.read().split()[3].partition("/")[2]) + limits["processes"]
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["output"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NPROC, processes),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # Beyond its own limit of time it gets the signal that says so only below the hard one.
        resource.setrlimit(kind, (value, hard if kind == resource.RLIMIT_CPU else value))


def _stand_in_for_packages() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    above = os.path.dirname(here)
    for name, folder in (
        ("jobbergate_flows", os.path.dirname(above)),
        ("jobbergate_flows.applications", above),
        ("jobbergate_flows.applications.child", here),
    ):
        package = types.ModuleType(name)
        package.__path__ = [folder]
        sys.modules[name] = package


if __name__ == "__main__":
    main()
    # All is said: a thread of the application's holds nobody up.
    os._exit(0)
