"""An application's questions, asked step by step of somebody who answers."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from jobbergate_flows.applications.child import shims
from jobbergate_flows.applications.child.questions import BooleanList, Const, QuestionBase
from jobbergate_flows.applications.errors import ApplicationError, InterviewError, LoadingError

MAX_STEPS = 1000
FILE = "jobbergate.py"


class Answerer(Protocol):
    """Who answers the questions, which are resolved with the answers so far."""

    def answer(self, question: QuestionBase) -> Any:
        """The answer to a question."""

    def ignored(self, question: QuestionBase) -> Any:
        """The value of a question that is not to be asked, and that no earlier one has given."""


class Program:
    """An application's `jobbergate.py`, which can be run several times.

    Args:
        folder: The application's folder, absolute.
        config: The content of `jobbergate.yaml`; every run gets a copy of its own.
    """

    def __init__(self, folder: str, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self._path = os.path.join(folder, FILE)
        shims.install()
        sys.path.insert(0, folder)
        with open(self._path, "rb") as file, self.own_code(LoadingError, "does not load"):
            self._code = compile(file.read(), self._path, "exec", dont_inherit=True)

    def start(self) -> Any:
        """A new object of the application's class, of a newly loaded module.

        Raises:
            LoadingError: The file does not load, or has no application class.
        """
        module = types.ModuleType("jobbergate_application")
        module.__file__ = self._path
        sys.modules[module.__name__] = module
        with self.own_code(LoadingError, "does not load"):
            exec(self._code, module.__dict__)
        kind = _application_class(module)
        with self.own_code(LoadingError, "the application class cannot be made"):
            application: Any = kind(copy.deepcopy(self.config))
            # What a class that forgot super().__init__() lacks.
            _ = application.jobbergate_config, application.application_config
            return application

    @contextlib.contextmanager
    def own_code(self, kind: type[ApplicationError], what: str) -> Iterator[None]:
        """Tell an error of the application's own code with its file and line."""
        try:
            yield
        except (ApplicationError, MemoryError):
            raise
        except BaseException as error:
            said = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
            named = type(error).__name__ + (f": {said[:500]}" if said else "")
            raise kind(f"{what}: {named}", where=self._where(error), hint=_mend(error)) from error

    def _where(self, error: BaseException) -> str:
        if isinstance(error, SyntaxError) and (error.filename or "").startswith(self.folder):
            return f"{os.path.relpath(str(error.filename), self.folder)}:{error.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename.startswith(self.folder):
                return f"{os.path.relpath(frame.filename, self.folder)}:{frame.lineno}"
        return FILE


def run(program: Program, answerer: Answerer) -> dict[str, Any]:
    """Run an application's steps from `mainflow` on.

    Returns:
        The final parameters: `application_config`, with `jobbergate_config` and the answers over it.

    Raises:
        LoadingError: The application is not one.
        InterviewError: Its code fails, or it goes in circles; and what the answerer raises.
    """
    application = program.start()
    data: dict[str, Any] = application.jobbergate_config
    step: Any = "mainflow"
    for _ in range(MAX_STEPS):
        answers: dict[str, Any] = {}
        for question in _questions(program, application, step, data):
            _ask(program, question, data, answers, answerer)
        data.update(answers)
        step = data.pop("nextworkflow", None)
        if not step:
            return {**application.application_config, **data}
    raise InterviewError(
        f"more than {MAX_STEPS} steps", where=FILE, hint="data['nextworkflow'] goes in circles: end it somewhere"
    )


def _mend(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"put {error.name} beside {FILE}, install it where jobbergate-flows is, or take the import out"
    return "mend the Python at that line"


def _application_class(module: types.ModuleType) -> type:
    kind = getattr(module, "JobbergateApplication", None)
    if isinstance(kind, type):
        return kind
    base = shims.JobbergateApplicationBase
    kinds = {
        member
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, base) and member is not base
    }
    if len(kinds) == 1:
        return kinds.pop()
    raise LoadingError(
        "defines no application class",
        where=FILE,
        hint="define class JobbergateApplication(JobbergateApplicationBase) with a method mainflow(self, data)",
    )


def _questions(program: Program, application: Any, step: Any, data: dict[str, Any]) -> Sequence[QuestionBase]:
    method = getattr(application, step, None) if isinstance(step, str) else None
    if not callable(method):
        raise LoadingError(
            f"data['nextworkflow'] names {step!r}, which is no method of the application",
            where=FILE,
            hint="define the method, or mend the name",
        )
    with program.own_code(InterviewError, f"{step} failed"):
        questions = method(data=data)
        if questions is None:
            warnings.warn(f"{FILE}: {step} returned None instead of a list of questions", stacklevel=1)
            return []
        questions = questions if isinstance(questions, str | dict | QuestionBase) else list(questions)
    if not isinstance(questions, list):
        raise LoadingError(f"{step} returned {type(questions).__name__}, not a list of questions", where=FILE)
    return questions


def _ask(
    program: Program, question: QuestionBase, data: dict[str, Any], answers: dict[str, Any], answerer: Answerer
) -> None:
    resolved = _resolved(program, question, {**data, **answers})
    name = resolved.variablename
    if isinstance(resolved, Const):
        answers[name] = resolved.default
    elif resolved.ignore:
        earlier = {**data, **answers}
        answers[name] = earlier[name] if name in earlier else answerer.ignored(resolved)
        if isinstance(resolved, BooleanList):
            _give_defaults(program, _branches(resolved, answers[name]), data, answers)
    else:
        answers[name] = answerer.answer(resolved)
        if isinstance(resolved, BooleanList):
            asked, left = _branches(resolved, answers[name])
            for child in asked:
                _ask(program, child, data, answers, answerer)
            _give_defaults(program, [left], data, answers)


def _give_defaults(
    program: Program,
    branches: Sequence[Sequence[QuestionBase]],
    data: dict[str, Any],
    answers: dict[str, Any],
) -> None:
    """Questions of branches that are not taken give their defaults, as in Jobbergate, but never over a value."""
    for question in (question for branch in branches for question in branch):
        known = {**data, **answers}
        try:
            resolved = _resolved(program, question, known)
        except InterviewError:
            # Its default is a function of answers that only its own branch has.
            continue
        name = resolved.variablename
        if name not in known and resolved.default is not None:
            answers[name] = resolved.converted_default()
        if isinstance(resolved, BooleanList):
            _give_defaults(program, _branches(resolved, answers.get(name)), data, answers)


def _branches(question: BooleanList, answer: Any) -> tuple[Sequence[QuestionBase], Sequence[QuestionBase]]:
    """The questions that follow the answer, and those that do not."""
    return (question.whentrue, question.whenfalse) if answer else (question.whenfalse, question.whentrue)


def _resolved(program: Program, question: Any, known: dict[str, Any]) -> QuestionBase:
    if not isinstance(question, QuestionBase):
        raise LoadingError(
            f"{question!r:.100} is no question", where=FILE, hint="a step returns a list of questions such as Text(...)"
        )
    with program.own_code(InterviewError, f"the question {question.variablename!r} failed"):
        return question.resolved(known)
