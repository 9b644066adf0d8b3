"""The settings of the nodestate cell that belongs to each Nova cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nodestate.config import Config, load
from nodestate.errors import ConfigError


def cell_settings(nova_cells: Sequence[str], config: str, cells: Mapping[str, str]) -> dict[str, Config]:
    """Return the settings by the uuid of the Nova cell. A Nova cell that ``cells`` does not name is left out.

    Args:
        nova_cells: the uuids of Nova's cells, without cell0.
        config: the option of this name in ``[nodestate]``.
        cells: likewise.

    Raises:
        ConfigError: if ``cells`` is needed and empty, if it names an unknown cell, or if a file cannot be used.
    """
    if cells:
        if unknown := sorted(cells.keys() - set(nova_cells)):
            raise ConfigError(f"[nodestate] cells names {unknown[0]}, and Nova's cells are {', '.join(nova_cells)}")
        return {uuid: load(file=path, environ={}) for uuid, path in cells.items()}
    if len(nova_cells) > 1:
        raise ConfigError(f"Nova has {len(nova_cells)} cells: give each a settings file in [nodestate] cells")
    return {uuid: load(file=config or None) for uuid in nova_cells}
