"""An application's class: found, made, and its steps run with somebody who answers."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import questions as question_types
from problem import Problem
from questions import BooleanList, Const, QuestionBase, check

MAX_STEPS = 1000
Answer = Callable[[QuestionBase, dict[str, Any], Any], Any]
"""Given a question, the answers so far and the default: the answer."""


class JobbergateApplicationBase:
    """The base of applications, as Jobbergate has it."""

    def __init__(self, jobbergate_yaml: dict[str, Any], *, sdk: Any = None) -> None:
        self.jobbergate_config = jobbergate_yaml["jobbergate_config"]
        self.application_config = jobbergate_yaml["application_config"]
        self.sdk = sdk

    def find_templates(self, path: Any = None) -> list[str]:
        """The templates below the application's folder."""
        found = []
        for folder, _, names in os.walk(path or os.getcwd()):
            found += [os.path.join(folder, name) for name in names if name.endswith((".j2", ".jinja2"))]
        return sorted(found)

    def get_template_files(self) -> list[str]:
        """The templates that `jobbergate.yaml` lists."""
        return list(self.jobbergate_config.get("template_files") or [])

    def mainflow(self, data: dict[str, Any]) -> list[QuestionBase]:
        """The first questions."""
        raise NotImplementedError


def install_shims() -> None:
    """Let files written for Jobbergate import what they name, without jobbergate_cli."""

    def module(name: str, **members: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(members, __path__=[])
        sys.modules[name] = made
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, made)
        return made

    kinds = {
        name: getattr(question_types, name)
        for name in (
            "QuestionBase",
            "Text",
            "Integer",
            "List",
            "Directory",
            "File",
            "Checkbox",
            "Confirm",
            "BooleanList",
            "Const",
        )
    }
    base = {"JobbergateApplicationBase": JobbergateApplicationBase}
    for root in ("jobbergate_cli", "jobbergate_core", "jobbergate"):
        module(root)
        module(f"{root}.application_base", **base)
        module(f"{root}.appform", **kinds)
        module(f"{root}.subapps")
        module(f"{root}.subapps.applications")
        module(f"{root}.subapps.applications.application_base", **base)
        module(f"{root}.subapps.applications.questions", **kinds)


def load(folder: str, config: dict[str, Any]) -> JobbergateApplicationBase:
    """The application of a folder."""
    install_shims()
    sys.path.insert(0, folder)
    path = os.path.join(folder, "jobbergate.py")
    spec = importlib.util.spec_from_file_location("jobbergate_application", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    with own_code(folder, "LoadingError", "jobbergate.py does not load"):
        spec.loader.exec_module(loaded)
    kind = getattr(loaded, "JobbergateApplication", None)
    if kind is None:
        classes = [
            member
            for member in vars(loaded).values()
            if isinstance(member, type)
            and issubclass(member, JobbergateApplicationBase)
            and member is not JobbergateApplicationBase
        ]
        if len(classes) != 1:
            raise Problem(
                "LoadingError",
                "defines no application class",
                "jobbergate.py",
                "define class JobbergateApplication(JobbergateApplicationBase) with a method mainflow(self, data)",
            )
        kind = classes[0]
    with own_code(folder, "LoadingError", "the application class cannot be made"):
        made = kind(config)
    if not callable(getattr(made, "mainflow", None)):
        raise Problem("LoadingError", "the application class has no method mainflow", "jobbergate.py")
    return made  # type: ignore[no-any-return]


def run(application: JobbergateApplicationBase, folder: str, answer: Answer) -> dict[str, Any]:
    """Run the application's steps and return the final parameters."""
    data = application.jobbergate_config
    step = "mainflow"
    for _ in range(MAX_STEPS):
        method = getattr(application, step, None)
        if not callable(method):
            raise Problem(
                "LoadingError",
                f"nextworkflow names {step!r}, which is no method",
                "jobbergate.py",
                "define it, or mend the name",
            )
        with own_code(folder, "InterviewError", f"{step} failed"):
            questions = method(data)
        if questions is None:
            warnings.warn(f"{step} returned None instead of a list of questions", stacklevel=1)
            questions = []
        answers: dict[str, Any] = {}
        for question in questions:
            ask(check(question), data, answers, answer, folder)
        data.update(answers)
        following = data.pop("nextworkflow", None)
        if not following:
            return {**application.application_config, **data}
        step = following
    raise Problem("InterviewError", f"more than {MAX_STEPS} steps: nextworkflow goes in circles", "jobbergate.py")


def ask(question: QuestionBase, data: dict[str, Any], answers: dict[str, Any], answer: Answer, folder: str) -> None:
    """Have one question answered, with its children, into `answers`."""
    known = {**data, **answers}
    name = question.variablename
    with own_code(folder, "InterviewError", f"the question {name!r} failed"):
        default = question.default_for(known)
        ignored = not isinstance(question, Const) and question.ignored(known)
    if isinstance(question, Const):
        answers[name] = default
        return
    if ignored:
        answers[name] = known.get(name, default)
        if isinstance(question, BooleanList):
            for child in question.children(bool(answers[name])):
                answers.setdefault(child.variablename, known.get(child.variablename, child.default_for(known)))
        return
    answers[name] = answer(question, known, default)
    if isinstance(question, BooleanList):
        for child in question.children(bool(answers[name])):
            ask(check(child), data, answers, answer, folder)


class own_code:
    """Turns an error of the application's own code into a `Problem` with the file and line."""

    def __init__(self, folder: str, kind: str, what: str) -> None:
        self.folder, self.kind, self.what = folder, kind, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, Problem | MemoryError):
            return
        if isinstance(error, SyntaxError) and error.filename and error.filename.startswith(self.folder):
            where = f"{os.path.relpath(error.filename, self.folder)}:{error.lineno}"
        else:
            where = "jobbergate.py"
            for frame in traceback.extract_tb(trace):
                if frame.filename.startswith(self.folder):
                    where = f"{os.path.relpath(frame.filename, self.folder)}:{frame.lineno}"
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise Problem(self.kind, f"{self.what}: {type(error).__name__}: {said}", where) from error


def every_question(questions: list[QuestionBase]) -> Iterator[QuestionBase]:
    """Questions with their children."""
    for question in questions:
        yield question
        if isinstance(question, BooleanList):
            yield from every_question(question.whentrue + question.whenfalse)
