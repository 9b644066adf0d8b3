"""Msgspec's descriptions of types, built before a process has several threads."""

from __future__ import annotations

import msgspec


def build_type_info(*kinds: type) -> None:
    """Let msgspec describe these types now. Call it where they are defined, because imports take turns.

    ``msgspec.convert`` describes a type at the first call, without a lock. If two threads make the first call at the
    same time, one of them uses the other's incomplete description, and the interpreter crashes (msgspec 0.22). A
    decoder needs the same description, and is usually made when its module is imported.
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)
