"""From who made a run, as Prefect Cloud says it, to a Unix account.

The table's `created_by` entries are looked at first, by the policy itself (`bindings`); a mapper is asked for all
others. A mapper gets one word for each person. By default this is the id, which nobody can choose. A directory that
knows mail addresses needs the display value instead: then **whoever can rename themselves in Prefect Cloud becomes whom
they name**, so set it only where names there come from the site's own sign-on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol

from agent_worker.identity.facts import Creator
from jobbergate_flows.errors import JobbergateFlowsError

Word = Literal["id", "display_value"]
GROUPS = ("jobbergate_flows.user_mapper", "jobbergate_agent.user_mapper")
"""The entry-point groups of plugins; the second is the old agent's."""


class MapperUnavailable(JobbergateFlowsError):
    """The directory cannot be asked now. Nothing is known: the run waits, and asking later is safe."""


class MapperBroken(JobbergateFlowsError):
    """The mapper is set up wrongly, or gives an answer that means nothing. Nobody is let in by it."""


class Mapper(Protocol):
    """Knows the accounts of people."""

    @property
    def name(self) -> str:
        """Which mapper it is, for the audit log."""
        ...

    def account(self, identity: str) -> str | None:
        """The account of an identity; None for one that is not known.

        Raises:
            MapperUnavailable: It cannot tell now.
            MapperBroken: It will never tell.
        """
        ...


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a mapper knows of a run's creator.

    Args:
        account: The Unix account.
        proof: By which mapper and which word, for the audit log.
    """

    account: str
    proof: str


def map_creator(mapper: Mapper, creator: Creator | None, *, by: Word = "id") -> Mapped | None:
    """The account of who made a run; None when nobody was signed in, or the mapper does not know them.

    Args:
        mapper: The site's mapper. It may wait for a directory: call this in a thread.
        creator: The run's `created_by`.
        by: Which word of it the mapper gets.

    Raises:
        MapperUnavailable, MapperBroken: as for `Mapper.account`.
    """
    if creator is None or not creator.is_signed_in:
        return None
    identity = creator.id if by == "id" else creator.display_value
    if not identity or not identity.isprintable():
        return None
    account = mapper.account(identity)
    return None if account is None else Mapped(account, f"{mapper.name}: created_by {by} {identity}")


@dataclass(frozen=True, slots=True)
class TableMapper:
    """A mapper from a table in memory.

    Args:
        table: Identity -> account. They are compared letter by letter.
    """

    table: Mapping[str, str]
    name: str = "table"

    def account(self, identity: str) -> str | None:
        """As `Mapper.account`."""
        return self.table.get(identity)


class PluginMapper:
    """A site's own mapper, from an entry point.

    As for the old agent, the entry point is a factory without arguments, and what it makes is a mapping
    (`mapper[identity]`, a KeyError for who is not known); a function of the identity will do too, with None for who is
    not known.

    Args:
        name: The entry point's name, in one of `GROUPS`.

    Raises:
        MapperBroken: There is none of that name, or it cannot be made.
    """

    def __init__(self, name: str) -> None:
        found = _entry_point(name)
        self.name = f"plugin {name}"
        try:
            self._mapper: Any = found.load()()
        except Exception as error:
            raise MapperBroken(
                f"the mapper cannot be made: {type(error).__name__}: {error}",
                where=f"entry point {name} = {found.value}",
                hint="it must be a factory without arguments",
            ) from error

    def account(self, identity: str) -> str | None:
        """As `Mapper.account`. Any error of the plugin's other than KeyError counts as its directory being down."""
        try:
            found = self._mapper[identity] if hasattr(self._mapper, "__getitem__") else self._mapper(identity)
        except KeyError:
            return None
        except Exception as error:
            raise MapperUnavailable(
                f"the mapper failed: {type(error).__name__}: {error}", where=self.name, hint="see the plugin's own log"
            ) from error
        if found is not None and (not isinstance(found, str) or not found):
            raise MapperBroken(f"the mapper answers {found!a:.100} instead of an account's name", where=self.name)
        return found


def _entry_point(name: str) -> EntryPoint:
    known: list[str] = []
    for group in GROUPS:
        for found in entry_points(group=group):
            if found.name == name:
                return found
            known.append(found.name)
    raise MapperBroken(
        f"there is no mapper {name!a}",
        where=f"entry points of {' and '.join(GROUPS)}",
        hint=f"installed are {', '.join(known)}" if known else "no package that is installed here has one",
    )
