"""Key pairs of operators for tests."""

from __future__ import annotations

from pathlib import Path

from nodestate.auth.key_file import write_keys
from nodestate.auth.operator_keys import ControlKeys, KeyPairs, OperatorKeys, new_key_pair

CREATED_AT = 1_763_787_600.0


def new_pairs(cell: str = "cell1") -> KeyPairs:
    """One random key pair of a cell."""
    private, public = new_key_pair(CREATED_AT)
    return OperatorKeys(cell=cell, keys=(private,)), ControlKeys(cell=cell, keys=(public,))


def control_settings(directory: Path, mode: str, pairs: KeyPairs | None = None) -> dict[str, str]:
    """Write the files of a key pair; returns the settings that name them, with this mode."""
    private, public = pairs or new_pairs()
    settings = {
        "auth_control": mode,
        "operator_key_file": str(directory / "operator.key"),
        "control_keys_file": str(directory / "control.keys"),
    }
    write_keys(settings["operator_key_file"], private, replace=True)
    write_keys(settings["control_keys_file"], public, replace=True, is_secret=False)
    return settings
