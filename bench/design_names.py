"""The names that ``--design`` takes, and the labels of designs in figures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from nodestate.designs import DESIGNS
from nodestate.ports import StoreRole

DRIVERS: Final = {"sqlite": "sqlite3", "mariadb": "pymysql", "postgres": "psycopg"}
"""Databases that may follow ``sql:``, with the module that connects to each. The first is the default."""
DESIGN_NAMES: Final = tuple(
    name
    for design, known in DESIGNS.items()
    if known.store_role in {StoreRole.STORE, StoreRole.SQL}  # the others are the same designs on other servers
    for name in ([f"{design}:{database}" for database in DRIVERS] if known.store_role is StoreRole.SQL else [design])
)
"""Full names of all designs that can be measured."""
DEFAULT_DESIGNS: Final = tuple(design for design, known in DESIGNS.items() if known.store_role is StoreRole.STORE)
"""The designs that are measured unless ``--design`` names others, and that have goals."""
INSTALL_EXTRA: Final = "pip install -e '.[bench]'"
"""The command that installs all clients of databases and of peers."""


def full_design_name(name: str) -> str:
    """Return the full name of a design, with its database. Raises ValueError if there is no such design."""
    full = f"{name}:{next(iter(DRIVERS))}" if name in DESIGNS and DESIGNS[name].store_role is StoreRole.SQL else name
    if full not in DESIGN_NAMES:
        raise ValueError(f"no design is named {name!r}; choose from {', '.join(dict.fromkeys(('sql', *DESIGN_NAMES)))}")
    return full


def design_label(names: Sequence[str]) -> str:
    """Return the label of one or more designs in figures: ``sql on mariadb`` for ``sql:mariadb``."""
    return " and ".join(full_design_name(name).replace(":", " on ") for name in names)


def driver_versions(database: str) -> dict[str, str]:
    """Return the versions of the libraries that connect nodestate to a database."""
    driver = DRIVERS[database]
    return {name: version(name) for name in ("sqlalchemy", *([] if driver == "sqlite3" else [driver]))}
