"""Rendering a template with the final parameters, in Jinja's sandbox."""

from __future__ import annotations

import os
import traceback
from typing import Any, NoReturn

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from jobbergate_flows.applications.errors import RenderingError


def render(folder: str, template: str, parameters: dict[str, Any]) -> str:
    """The text of one template: `{{ x }}`, `{{ data.x }}` and `{{ data["x"] }}` are the parameter x.

    Raises:
        RenderingError: with the template and the line: an undefined name, or anything else that fails in it.
    """
    path = os.path.join(folder, template)
    environment = SandboxedEnvironment(undefined=_Undefined, keep_trailing_newline=True, loader=_NoOthers())
    try:
        with open(path, encoding="utf-8") as file:
            code = environment.compile(file.read(), name=template, filename=path)
        compiled = environment.template_class.from_code(environment, code, environment.make_globals(None))
        text = compiled.render({"data": Data(parameters), **parameters})
        text.encode()
        return text
    except MemoryError:
        raise
    except UndefinedError as error:
        raise RenderingError(
            str(error.message),
            where=_where(error, path, template),
            hint="ask for it in jobbergate.py, or give it a value in application_config of jobbergate.yaml",
        ) from error
    except Exception as error:
        message = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise RenderingError(
            " ".join(str(message or type(error).__name__).split())[:500],
            where=_where(error, path, template),
            hint="mend the template, or the answers that it is given",
        ) from error


class Data(dict[str, Any]):
    """The parameters under the name `data`; one that is named as a method of dictionaries is the parameter."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and dict.__contains__(self, name):
            return dict.__getitem__(self, name)
        return super().__getattribute__(name)


class _NoOthers(BaseLoader):
    """A template stands alone, as in Jobbergate."""

    def get_source(self, environment: Environment, template: str) -> NoReturn:
        raise TemplateError(f"{template!r}: a template cannot include, import or extend another one")


class _Undefined(StrictUndefined):
    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if isinstance(self._undefined_obj, Data):
            return f"'data.{self._undefined_name}' is undefined"
        return super()._undefined_message


def _where(error: BaseException, path: str, template: str) -> str:
    if isinstance(line := getattr(error, "lineno", None), int):
        return f"{template}:{line}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{template}:{lines[-1]}" if lines else template
