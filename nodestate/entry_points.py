"""Entry points by which installed packages extend nodestate, and the setting ``plugins``, which allows packages.

The code of a package that the setting does not name is not run: to load an entry point is to import its module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from nodestate.errors import ConfigError

FILTER_GROUP: Final = "nodestate.filters"
"""The name of the entry point group for filters."""
WEIGHER_GROUP: Final = "nodestate.weighers"
"""The name of the entry point group for weighers."""
SOURCE_GROUP: Final = "nodestate.sources"
"""The name of the entry point group for sources of state."""
GROUPS: Final = (FILTER_GROUP, WEIGHER_GROUP, SOURCE_GROUP)
ALL_PLUGINS: Final = "*"
"""Stands for all packages in the setting ``plugins``."""


def points_of(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, sorted by name. Loads none of them."""
    return sorted(entry_points(group=group), key=lambda point: point.name)


def package_of(point: EntryPoint) -> str:
    """Return the normalized name of the package that has the entry point."""
    return _normalized(point.dist.name) if point.dist is not None else ""


def allowed_packages(allowed: Sequence[str]) -> set[str]:
    """Return the normalized names of the installed packages with entry points that the setting ``plugins`` allows.

    Raises ``ConfigError`` if the setting names a package that is not installed or has no entry points of nodestate.
    """
    names = {_normalized(name) for name in allowed}
    present = {package_of(point) for group in GROUPS for point in points_of(group)}
    if ALL_PLUGINS in names:
        return present
    if missing := sorted(names - present):
        raise ConfigError(
            f"setting plugins names {missing[0]!r}, but no installed package of this name has filters, weighers or "
            "sources: install it, or remove the name"
        )
    return names


def load_point(point: EntryPoint) -> Any:
    """Import the object that an entry point names. Raises ``ConfigError``, whatever the import raises."""
    try:
        return point.load()
    except Exception as error:  # code of another package may raise anything
        raise ConfigError(
            f"entry point {point.name!r} of {point.group} ({point.value}) can't be loaded: {error}; "
            "mend or uninstall its package"
        ) from error


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
