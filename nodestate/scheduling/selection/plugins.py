"""Loads all filters and weighers: the ones of nodestate, and the ones that installed packages add by entry points.

The setting ``plugins`` names the packages whose entry points are loaded. The code of other packages is not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from nodestate.errors import ConfigError
from nodestate.scheduling.selection.filters import FILTERS, Filter
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher

FILTER_GROUP: Final = "nodestate.filters"
"""The name of the entry point group for filters."""
WEIGHER_GROUP: Final = "nodestate.weighers"
"""The name of the entry point group for weighers."""
ALL_PLUGINS: Final = "*"
"""Stands for all packages in the setting ``plugins``."""


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
    names = {_normalized(name) for name in allowed}
    groups = [
        sorted(entry_points(group=group), key=lambda point: point.name) for group in (FILTER_GROUP, WEIGHER_GROUP)
    ]
    if ALL_PLUGINS in names:
        return groups
    present = {_package(point) for points in groups for point in points}
    if missing := sorted(names - present):
        raise ConfigError(
            f"setting plugins names {missing[0]!r}, but no installed package of this name has filters or weighers: "
            "install it, or remove the name"
        )
    for package in sorted(present - names):
        import structlog  # noqa: PLC0415 - most schedulers log nothing, and it takes long to import

        structlog.get_logger("nodestate.scheduling").warning(
            "filters and weighers are not loaded, because the setting plugins does not name their package",
            package=package,
            names=[point.name for points in groups for point in points if _package(point) == package],
        )
    return [[point for point in points if _package(point) in names] for points in groups]


def _package(point: EntryPoint) -> str:
    """The normalized name of the package that has the entry point."""
    return _normalized(point.dist.name) if point.dist is not None else ""


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


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
