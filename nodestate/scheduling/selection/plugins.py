"""Loads all filters and weighers: the ones of nodestate, and the ones that installed packages add by entry points.

The setting ``plugins`` names the packages whose entry points are loaded. The code of other packages is not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from nodestate.entry_points import (
    ALL_PLUGINS,
    FILTER_GROUP,
    WEIGHER_GROUP,
    allowed_packages,
    load_point,
    package_of,
    points_of,
)
from nodestate.errors import ConfigError
from nodestate.scheduling.selection.filters import FILTERS, Filter
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher


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


def installed(allowed: Sequence[str] = (ALL_PLUGINS,)) -> Policies:
    """Load the filters and weighers of nodestate, followed by the ones of allowed packages.

    Logs the names of entry points that are not allowed.

    Args:
        allowed: The setting ``plugins``: names of packages; ``*`` for all.

    Raises:
        ConfigError: An entry point cannot be loaded, or it is not a filter or weigher, or its name is already taken.
            The error names the entry point. Or no installed package with filters or weighers has an allowed name.
    """
    policies = own()
    filters, weighers = _allowed_points(allowed)
    for name, found in _loaded(FILTER_GROUP, filters, callable):
        _add(policies.filters, FILTER_GROUP, name, found)
    for name, found in _loaded(WEIGHER_GROUP, weighers, lambda found: isinstance(found, Weigher) or callable(found)):
        _add(policies.weighers, WEIGHER_GROUP, name, found if isinstance(found, Weigher) else Weigher(found))
    return policies


def _allowed_points(allowed: Sequence[str]) -> list[list[EntryPoint]]:
    """Return the allowed entry points of both groups, sorted by name."""
    groups = [points_of(FILTER_GROUP), points_of(WEIGHER_GROUP)]
    names = allowed_packages(allowed)
    for package in sorted({package_of(point) for points in groups for point in points} - names):
        import structlog  # noqa: PLC0415 - most schedulers log nothing, and it takes long to import

        structlog.get_logger("nodestate.scheduling").warning(
            "filters and weighers are not loaded, because the setting plugins does not name their package",
            package=package,
            names=[point.name for points in groups for point in points if package_of(point) == package],
        )
    return [[point for point in points if package_of(point) in names] for points in groups]


def _loaded(group: str, points: Sequence[EntryPoint], fits: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """Load entry points of a group.

    Args:
        group: The name of the entry point group.
        points: The entry points.
        fits: Returns whether a loaded object is of a valid type for the group.

    Returns:
        The name of each entry point and the object that it names.

    Raises:
        ConfigError: An entry point cannot be loaded, or its object is not of a valid type.
    """
    loaded = []
    for point in points:
        found = load_point(point)
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
