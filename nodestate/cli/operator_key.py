"""The operators' keys, as the commands ``key … --operator`` create, replace and revoke them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from nodestate.auth.followed_file import REREAD_S
from nodestate.auth.key_file import locked_directories, write_keys
from nodestate.auth.operator_keys import (
    ControlKeys,
    KeyPairs,
    OperatorKeys,
    new_key_pair,
    read_control_keys,
    read_operator_keys,
    with_new_pair,
    without_pair,
)
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.text import span_text

READERS: Final = "consumers, schedulers and other readers"
"""The processes that follow the control record."""

Answer = tuple[dict[str, Any], str]
"""The result of a command: for ``--json``, and as text."""


def init(config: Config) -> Answer:
    """Create both files with the first key pair. Existing files are not changed."""
    _require_files(config)
    private, public = new_key_pair(time.time())
    pairs = OperatorKeys(cell=config.cell, keys=(private,)), ControlKeys(cell=config.cell, keys=(public,))
    with locked_directories(config.operator_key_file, config.control_keys_file):
        for path in (config.operator_key_file, config.control_keys_file):
            if Path(path).exists():
                raise ConfigError(f"{path} exists; delete it first, or give another file: its keys would be lost")
        _write(config, pairs, first=True)
    text = (
        f"wrote the private key {private.id} of cell {config.cell} to {config.operator_key_file}, and the public key "
        f"to {config.control_keys_file}; copy the second file to {READERS}"
    )
    return {**_files(config), "cell": config.cell, "id": private.id}, text


def rotate(config: Config) -> Answer:
    """Add a key pair that will replace the present one. The new key signs from now on."""
    _require_files(config)
    with locked_directories(config.operator_key_file, config.control_keys_file):
        pairs = with_new_pair(_read(config), time.time())
        _write(config, pairs)
    old, new = (one.id for one in pairs[1].keys)
    text = (
        f"added key {new}, with which operators' commands sign from now on. Before the next of them, copy "
        f"{config.control_keys_file} to {READERS}. Then run 'nodestate design sign', and 'nodestate key revoke "
        f"--operator {old}'"
    )
    return {**_files(config), "old": old, "new": new}, text


def revoke(config: Config, key_id: str) -> Answer:
    """Refuse the signatures of a key."""
    _require_files(config)
    with locked_directories(config.operator_key_file, config.control_keys_file):
        _write(config, without_pair(_read(config), key_id, time.time()))
    text = (
        f"revoked operators' key {key_id}; copy {config.control_keys_file} to {READERS}, which refuse it within "
        f"{REREAD_S:g} s"
    )
    return {**_files(config), "id": key_id, "within_s": REREAD_S}, text


def status(config: Config, now: float) -> tuple[dict[str, Any], list[str]]:
    """Return the ids and ages of the keys in the files that the settings name. ``now``: seconds since 1970."""
    answer: dict[str, Any] = {}
    lines: list[str] = []
    if config.control_keys_file:
        public = read_control_keys(config.control_keys_file, config.cell)
        answer["control_keys"] = [{"id": one.id, "age_s": round(now - one.created_at, 1)} for one in public.keys]
        answer["revoked_control_keys"] = [
            {"id": key_id, "age_s": round(now - at, 1)} for key_id, at in public.revoked_ids.items()
        ]
        lines.append(f"{config.control_keys_file}: public keys of the operators of cell {public.cell}")
        lines += [f"public key {one['id']}, {span_text(one['age_s'])} old" for one in answer["control_keys"]]
        lines += [f"revoked: {one['id']}, {span_text(one['age_s'])} ago" for one in answer["revoked_control_keys"]]
    if config.operator_key_file:
        private = read_operator_keys(config.operator_key_file, config.cell)
        answer["operator_keys"] = [one.id for one in private.keys]
        lines.append(f"{config.operator_key_file}: operators' commands sign with {private.keys[-1].id}")
    return answer, lines


def _require_files(config: Config) -> None:
    """Raise ``ConfigError`` unless the settings name both files."""
    if not config.operator_key_file or not config.control_keys_file:
        raise ConfigError(
            "the operators' keys need two files: set NODESTATE_OPERATOR_KEY_FILE for the private key, and "
            "NODESTATE_CONTROL_KEYS_FILE for the public one"
        )


def _files(config: Config) -> dict[str, str]:
    return {"operator_key_file": config.operator_key_file, "control_keys_file": config.control_keys_file}


def _read(config: Config) -> KeyPairs:
    return (
        read_operator_keys(config.operator_key_file, config.cell),
        read_control_keys(config.control_keys_file, config.cell),
    )


def _write(config: Config, pairs: KeyPairs, *, first: bool = False) -> None:
    """Write both files, the public keys first: no command then signs with a key that is not in that file."""
    private, public = pairs
    write_keys(config.control_keys_file, public, replace=not first, is_secret=False)
    write_keys(config.operator_key_file, private, replace=not first)
