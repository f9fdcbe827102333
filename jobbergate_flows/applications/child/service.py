"""What is asked of the separate process: describe, interview, render."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from jobbergate_flows.applications.child import interview, schema
from jobbergate_flows.applications.child.questions import Directory, File, QuestionBase
from jobbergate_flows.applications.errors import ApplicationError, BadAnswer, MissingAnswer, UnknownAnswer

Say = Callable[[dict[str, Any]], None]


def serve(request: dict[str, Any], say: Say, receive: Callable[[], Any]) -> dict[str, Any]:
    """Do what a request wants.

    Args:
        request: `do`, `folder`, `config`, and what the deed needs.
        say: Sends a question to the parent.
        receive: Waits for its answer.

    Raises:
        ApplicationError: What is wrong with the application or the answers.
    """
    program = interview.Program(request["folder"], request["config"])
    match request["do"]:
        case "describe":
            form, complete, faults = schema.describe(program)
            return {"form": form, "complete": complete, "faults": faults}
        case "interview":
            asking = _Asking(request["answers"], fast=request["fast"], say=say, receive=receive)
            interview.run(program, asking)
            asking.refuse_unknown(program)
            return {"answers": asking.given}
        case "check":
            checking = _Checking(request["answers"])
            return {"answers": checking.check(program)}
    # Jinja is the larger part of a start, and no other request needs it.
    from jobbergate_flows.applications.child.rendering import render

    replaying = _Replaying(request["answers"])
    parameters = interview.run(program, replaying)
    replaying.refuse_unknown(program)
    name = parameters.get("job_script_name")
    templates = {request["entrypoint"]: None, **request["supporting"]}
    texts = {template: render(program.folder, template, parameters) for template in templates}
    return {
        "name": str(name) if name else None,
        "text": texts[request["entrypoint"]],
        "files": {output: texts[template] for template, output in request["supporting"].items()},
    }


class _Replaying(interview.Answerer):
    """Answers from a mapping; what is not in it takes its default. None is no answer."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.given = {str(name): value for name, value in answers.items() if value is not None}
        self.used: set[str] = set()
        self._names = [str(name) for name in answers]

    def answer(self, question: QuestionBase) -> Any:
        name = question.variablename
        self.used.add(name)
        if name in self.given:
            return self._checked(question, self.given[name])
        if question.default is None:
            raise MissingAnswer(
                f"the question {name!r} ({question.message}) has no answer and no default",
                where=f"answers.{name}",
                hint=f"answer it: {name}=...",
            )
        try:
            return question.convert(question.default)
        except ValueError as error:
            raise BadAnswer(
                f"{_shown(question.default)}, its default, {error}",
                where=f"answers.{name}",
                hint=f"answer it, or mend its default in jobbergate.py: {question.message}",
            ) from error

    def ignored(self, question: QuestionBase) -> Any:
        name = question.variablename
        self.used.add(name)
        return self._checked(question, self.given[name]) if name in self.given else question.converted_default()

    def refuse_unknown(self, program: interview.Program) -> None:
        """No answer may go astray. Those to questions of other branches are no mistake."""
        if self.used.issuperset(self._names):
            return
        try:
            known = self.used | set(schema.describe(program)[0]["properties"])
        except ApplicationError:
            known = self.used
        for name in self._names:
            if name not in known:
                raise UnknownAnswer(
                    f"there is no question {name!r}", where=f"answers.{name}", hint=_mend(name, known, program)
                )

    def _checked(self, question: QuestionBase, value: Any) -> Any:
        try:
            answer = question.convert(value)
            self._holds(question, answer)
        except ValueError as error:
            raise BadAnswer(
                f"{_shown(value)} {error}",
                where=f"answers.{question.variablename}",
                hint=f"the question is: {question.message}",
            ) from error
        return answer

    def _holds(self, question: QuestionBase, answer: Any) -> None:
        question.verify(answer)


class _Checking(_Replaying):
    """Answers from a mapping that need not be all: for the rest the defaults, or something to go on with."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__(answers)
        self._converted: dict[str, Any] = {}

    def check(self, program: interview.Program) -> dict[str, Any]:
        """The answers as their questions convert them; those of other branches too."""
        try:
            interview.run(program, self)
        except (BadAnswer, UnknownAnswer):
            raise
        except ApplicationError:
            # What was made up may not do for the rest; the run itself says what is missing.
            pass
        left = [name for name in self.given if name not in self._converted]
        if left:
            paths, complete = schema.explore(program)
            for name in left:
                self._check_elsewhere(name, [path.met[name] for path in paths if name in path.met])
            if complete:
                self.used |= self._converted.keys()
                self.refuse_unknown(program)
        return {name: self._converted.get(name, value) for name, value in self.given.items()}

    def answer(self, question: QuestionBase) -> Any:
        name = question.variablename
        self.used.add(name)
        if name in self.given:
            return self._checked(question, self.given[name])
        default = question.converted_default()
        return question.placeholder() if default is None else default

    def _checked(self, question: QuestionBase, value: Any) -> Any:
        self._converted[question.variablename] = answer = super()._checked(question, value)
        return answer

    def _holds(self, question: QuestionBase, answer: Any) -> None:
        # Whether a path exists is for the host of the run to say.
        if not isinstance(question, File | Directory):
            question.verify(answer)

    def _check_elsewhere(self, name: str, questions: list[QuestionBase]) -> None:
        """A question may differ from branch to branch: an answer to one of them is one."""
        refusal: BadAnswer | None = None
        for question in questions:
            try:
                self._checked(question, self.given[name])
            except BadAnswer as error:
                refusal = refusal or error
            else:
                return
        if refusal is not None:
            raise refusal


class _Asking(_Replaying):
    """Answers from a mapping, and for the rest from whoever the parent asks, until the answer is a good one."""

    def __init__(self, answers: Mapping[str, Any], *, fast: bool, say: Say, receive: Callable[[], Any]) -> None:
        super().__init__(answers)
        self._fast, self._say, self._receive = fast, say, receive

    def answer(self, question: QuestionBase) -> Any:
        name = question.variablename
        if name in self.given or (self._fast and question.default is not None):
            return super().answer(question)
        self.used.add(name)
        complaint = None
        while True:
            self._say({"ask": question.described(), "complaint": complaint})
            value = self._receive()
            value = question.default if value is None else value
            try:
                answer = question.convert(value)
                question.verify(answer)
            except ValueError as error:
                complaint = f"{_shown(value)} {error}"
            else:
                self.given[name] = answer
                return answer


def _mend(name: str, known: set[str], program: interview.Program) -> str:
    if name in program.config["application_config"]:
        return "it is a variable of jobbergate.yaml that no question asks for: change it there"
    if close := difflib.get_close_matches(name, sorted(known), 1):
        return f"did you mean {close[0]!r}?"
    return f"the questions are {', '.join(sorted(known))}" if known else "the application asks nothing"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
