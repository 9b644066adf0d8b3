"""Files of keys for tests: the secrets of a cell, and the keys of its nodes."""

from __future__ import annotations

from pathlib import Path

from nodestate.auth.key_file import Keyring, write_keys
from nodestate.auth.keys import CellKeys, NodeKeys, Secret

CREATED_AT = 1_763_787_600.0


def new_cell_keys(cell: str = "cell1", secrets_count: int = 1) -> CellKeys:
    """Random secrets of a cell."""
    return CellKeys(cell=cell, secrets=tuple(Secret.new(CREATED_AT) for _ in range(secrets_count)))


def rotated(keys: CellKeys) -> CellKeys:
    """The same secrets with a newer one."""
    return keys.with_new_secret(CREATED_AT)


def without_oldest(keys: CellKeys) -> CellKeys:
    """The same secrets without the oldest one."""
    return keys.without_secret(keys.secrets[0].id, CREATED_AT)


def with_revoked(keys: CellKeys, node: str) -> CellKeys:
    """The same secrets, with the present keys of a node revoked."""
    return keys.with_revoked_node(node, CREATED_AT)


def written(directory: Path, name: str, keys: CellKeys | NodeKeys) -> str:
    """Write keys to a file of this name; returns its path."""
    path = directory / name
    write_keys(str(path), keys, replace=True)
    return str(path)


class FixedKeyring(Keyring):
    """Keys without a file; a test may replace them at any time."""

    def __init__(self, keys: CellKeys | NodeKeys) -> None:
        self._signing_keys, self._macs = {}, {}
        self._readings_count = 0
        self.change(keys)

    def change(self, keys: CellKeys | NodeKeys) -> None:
        self._keys = keys
        self._readings_count += 1
        self._signing_keys.clear()
        self._macs.clear()

    def _follow_file(self) -> None:
        """Do nothing."""
