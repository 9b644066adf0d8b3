"""The filters and weighers there are: ours, and those that installed packages add by entry point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from nodestate.errors import ConfigError
from nodestate.scheduling.selection.filters import FILTERS, Filter
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher

FILTER_GROUP: Final = "nodestate.filters"
WEIGHER_GROUP: Final = "nodestate.weighers"


@dataclass(frozen=True, slots=True)
class Policies:
    """What decides: filters and weighers by name, in the order in which they are asked."""

    filters: dict[str, Filter]
    weighers: dict[str, Weigher]


def own() -> Policies:
    """Those that come with nodestate."""
    return Policies(dict(FILTERS), dict(WEIGHERS))


def installed() -> Policies:
    """Ours, then those of installed packages. Raises ``ConfigError`` where one can't be loaded, or takes a name of ours."""
    policies = own()
    for name, found in _loaded(FILTER_GROUP, callable):
        _add(policies.filters, FILTER_GROUP, name, found)
    for name, found in _loaded(WEIGHER_GROUP, lambda found: isinstance(found, Weigher) or callable(found)):
        _add(policies.weighers, WEIGHER_GROUP, name, found if isinstance(found, Weigher) else Weigher(found))
    return policies


def _loaded(group: str, fits: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    loaded = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            found = point.load()
        except Exception as error:
            raise ConfigError(
                f"entry point {point.name!r} of {group} ({point.value}) can't be loaded: {error}"
            ) from error
        if not fits(found):
            raise ConfigError(f"entry point {point.name!r} of {group} ({point.value}) is a {type(found).__name__}")
        loaded.append((point.name, found))
    return loaded


def _add(there: dict[str, Any], group: str, name: str, found: Any) -> None:
    if name in there:
        raise ConfigError(f"entry point {name!r} of {group}: there is one of that name already")
    there[name] = found
