"""Sources of state that other packages add by the entry point group ``nodestate.sources``.

An entry point names a function that gets the cell's settings and returns a ``StateSource``. Its module is imported only
if the agent is asked for this source, so a broken package harms no other source.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint

from nodestate.agent.sources import StateSource
from nodestate.config import Config
from nodestate.entry_points import SOURCE_GROUP, allowed_packages, load_point, package_of, points_of
from nodestate.errors import ConfigError, NodestateError

_METHODS = ("name", "every_s", "nodes", "poll", "close")
"""The members of a ``StateSource``."""


def installed_sources(taken: Collection[str] = ()) -> list[str]:
    """Return the sorted names of the sources of installed packages, except the names in ``taken``. Imports none."""
    return sorted({point.name for point in points_of(SOURCE_GROUP)} - set(taken))


def open_installed_source(name: str, config: Config) -> StateSource:
    """Open the source of an installed package.

    Args:
        name: name of the entry point.
        config: settings of the cell. ``plugins`` must allow the package.

    Raises:
        ConfigError: if no package or several packages have a source of this name, if the setting ``plugins`` does not
            name the package, or if the package's code fails or returns no source. The error names the entry point.
    """
    point = _point_of(name)
    package = package_of(point)
    if package not in allowed_packages(config.plugins):
        raise ConfigError(
            f"source {name!r} is of the package {package!r}, which the setting plugins does not name: add it to run "
            "its code"
        )
    make = load_point(point)
    try:
        source = make(config)
    except NodestateError as error:
        raise ConfigError(f"source {name!r} of the package {package!r} can't be opened: {error}") from error
    except Exception as error:  # code of another package may raise anything
        raise ConfigError(
            f"source {name!r} of the package {package!r} can't be opened: {point.value} failed: {error!r}"
        ) from error
    if missing := [method for method in _METHODS if not hasattr(source, method)]:
        raise ConfigError(
            f"source {name!r} of the package {package!r} is no StateSource: {point.value} returned a "
            f"{type(source).__name__} without {missing[0]!r}"
        )
    found: StateSource = source
    return found


def _point_of(name: str) -> EntryPoint:
    points = [point for point in points_of(SOURCE_GROUP) if point.name == name]
    if not points:
        raise ConfigError(f"no installed package has a source {name!r} ({SOURCE_GROUP})")
    packages = sorted({package_of(point) for point in points})
    if len(packages) > 1:
        raise ConfigError(f"several packages have a source {name!r}: {', '.join(packages)}; uninstall all but one")
    return points[0]
