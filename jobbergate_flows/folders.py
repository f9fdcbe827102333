"""Applications in folders as flows that a `prefect.yaml` can name.

`prefect deploy` wants an entrypoint that it can import. `jobbergate_flows.folders.parameter_study` is the flow of
the folder `parameter-study` (or `parameter_study`) in one of the folders of `JOBBERGATE_FLOWS_APPLICATIONS`, a path
list that is `examples:applications` by default and relative to the working directory. The deployment's runs need no
folder: they load the stored application (the build step `jobbergate_flows.deployments.store_application`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jobbergate_flows.applications import Application
from jobbergate_flows.flows import application_flow, run_application

PREFIX = "jobbergate_flows.folders."


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    if os.environ.get("PREFECT__FLOW_RUN_ID"):
        return run_application
    roots = os.environ.get("JOBBERGATE_FLOWS_APPLICATIONS", "examples:applications").split(os.pathsep)
    for root in roots:
        for folder in sorted(Path(root).glob("*/jobbergate.yaml")):
            if re.sub(r"\W", "_", folder.parent.name) == name:
                return application_flow(Application.from_path(folder.parent))
    raise AttributeError(f"no folder of {os.pathsep.join(roots)} holds an application {name!r}")
