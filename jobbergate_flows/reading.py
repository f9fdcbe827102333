"""Reading YAML that people wrote; JSON is YAML as well, so one reader does for both."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import yaml

from jobbergate_flows.errors import JobbergateFlowsError

E = TypeVar("E", bound=JobbergateFlowsError)


def read_yaml(text: str, *, where: str, refused: type[E], unique_keys: bool = False) -> list[Any]:
    """The documents of a YAML text, none of them empty.

    Args:
        where: What the text is called in an error; the line comes after it.
        refused: The error to raise, with the line and the mend.
        unique_keys: Refuse a map that has one key twice, instead of taking the last.
    """
    loader = _UniqueKeys if unique_keys else _Loader
    try:
        return [content for content in yaml.load_all(text, loader) if content is not None]
    except yaml.YAMLError as error:
        said, line = _said(error, text)
        raise refused(
            f"bad YAML: {said}", where=f"{where}:{line}" if line else where, hint="mend the YAML at that line"
        ) from error
    except RecursionError as error:
        raise refused("bad YAML: it is nested too deeply", where=where, hint="nest it less") from error


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            # Such as a date without a thirteenth month, of which PyYAML does not say where it is.
            raise yaml.constructor.ConstructorError(None, None, f"{error}; or quote it", node.start_mark) from error


class _UniqueKeys(_Loader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _said(error: yaml.YAMLError, text: str) -> tuple[str, int | None]:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return str(getattr(error, "problem", None) or error), mark.line + 1
    if isinstance(error, yaml.reader.ReaderError):
        # YAML's own words for it have two lines, and no line.
        line = text.count("\n", 0, error.position) + 1
        return f"the character U+{ord(text[error.position]):04X} may not be in it", line
    return " ".join(str(error).split()), None
