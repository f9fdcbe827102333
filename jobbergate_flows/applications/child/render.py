"""Rendering the templates with the final parameters, in Jinja's sandbox."""

from __future__ import annotations

import os
import traceback
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment
from problem import Problem


class Data:
    """The parameters as `data.x` and `data["x"]`; a parameter named as a method of dictionaries wins over it."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        object.__setattr__(self, "_Data__parameters", parameters)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        parameters = object.__getattribute__(self, "_Data__parameters")
        if name in parameters:
            return parameters[name]
        if name in ("items", "keys", "values", "get"):
            return getattr(dict(parameters), name)
        raise AttributeError(name)

    def __getitem__(self, name: str) -> Any:
        return object.__getattribute__(self, "_Data__parameters")[name]

    def __contains__(self, name: str) -> bool:
        return name in object.__getattribute__(self, "_Data__parameters")

    def __iter__(self) -> Any:
        return iter(object.__getattribute__(self, "_Data__parameters"))

    def __len__(self) -> int:
        return len(object.__getattribute__(self, "_Data__parameters"))


class Undefined(StrictUndefined):
    """Strict, and says `data.x` where the template did."""

    @property
    def _undefined_message(self) -> str:
        if isinstance(self._undefined_obj, Data):
            return f"'data.{self._undefined_name}' is undefined"
        return super()._undefined_message


def render(folder: str, template: str, parameters: dict[str, Any]) -> str:
    """The text of one template of the folder."""
    path = os.path.join(folder, template)
    environment = SandboxedEnvironment(undefined=Undefined)
    context = {"data": Data(parameters), **parameters}
    try:
        with open(path, encoding="utf-8") as file:
            source = file.read()
        code = environment.compile(source, name=template, filename=path)
        compiled = environment.template_class.from_code(environment, code, environment.make_globals(None))
        text = compiled.render(context)
    except UndefinedError as error:
        raise Problem(
            "RenderingError",
            str(error.message),
            _where(error, path, template),
            "answer the question that sets it, or give it a default in application_config of jobbergate.yaml",
        ) from error
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"{template}:{line}" if line else _where(error, path, template)
        raise Problem("RenderingError", str(error.message or type(error).__name__), where) from error
    except (MemoryError, Problem):
        raise
    except Exception as error:
        raise Problem("RenderingError", f"{type(error).__name__}: {error}", _where(error, path, template)) from error
    return text if text.endswith("\n") or not text else text + "\n"


def _where(error: BaseException, path: str, template: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{template}:{lines[-1]}" if lines else template
