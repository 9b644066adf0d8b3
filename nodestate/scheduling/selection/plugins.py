"""Loads all filters and weighers: the ones of nodestate, and the ones that installed packages add by entry points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from nodestate.errors import ConfigError
from nodestate.scheduling.selection.filters import FILTERS, Filter
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher

FILTER_GROUP: Final = "nodestate.filters"
"""The name of the entry point group for filters."""
WEIGHER_GROUP: Final = "nodestate.weighers"
"""The name of the entry point group for weighers."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The filters and weighers that a scheduler uses to choose nodes."""

    filters: dict[str, Filter]
    """The filters by name, in the order in which they are applied."""
    weighers: dict[str, Weigher]
    """The weighers by name."""


def own() -> Policies:
    """Return the filters and weighers that are part of nodestate, without the ones of installed packages."""
    return Policies(dict(FILTERS), dict(WEIGHERS))


def installed() -> Policies:
    """Load the filters and weighers of nodestate, followed by the ones of all installed packages.

    Raises:
        ConfigError: An entry point cannot be loaded, or it is not a filter or weigher, or its name is already taken.
            The error names the entry point.
    """
    policies = own()
    for name, found in _loaded(FILTER_GROUP, callable):
        _add(policies.filters, FILTER_GROUP, name, found)
    for name, found in _loaded(WEIGHER_GROUP, lambda found: isinstance(found, Weigher) or callable(found)):
        _add(policies.weighers, WEIGHER_GROUP, name, found if isinstance(found, Weigher) else Weigher(found))
    return policies


def _loaded(group: str, fits: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """Load all entry points of a group, sorted by name.

    Args:
        group: The name of the entry point group.
        fits: Returns whether a loaded object is of a valid type for the group.

    Returns:
        The name of each entry point and the object that it names.

    Raises:
        ConfigError: An entry point cannot be loaded, or its object is not of a valid type.
    """
    loaded = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            found = point.load()
        except Exception as error:
            raise ConfigError(
                f"entry point {point.name!r} of {group} ({point.value}) can't be loaded: {error}; "
                "mend or uninstall its package"
            ) from error
        if not fits(found):
            raise ConfigError(
                f"entry point {point.name!r} of {group} ({point.value}) is a {type(found).__name__}; "
                f"it must be a function{' or a Weigher' if group == WEIGHER_GROUP else ''}"
            )
        loaded.append((point.name, found))
    return loaded


def _add(there: dict[str, Any], group: str, name: str, found: Any) -> None:
    """Add a filter or weigher to ``there``. Raises ``ConfigError`` if ``there`` already contains its name."""
    if name in there:
        raise ConfigError(f"entry point {name!r} of {group}: the name is taken; give it another name")
    there[name] = found
