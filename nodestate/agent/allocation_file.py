r"""What an agent admitted, on disk: one file for each source, for as long as the allocations live.

    (no file) --open--> empty        file --open: read, and written anew without what ended--> open
    open --keep: one line, one fsync--> open        --keep fails: nothing of it counts--> the next writes the file anew

Each line is a checksum (CRC-32, as eight hexadecimal digits), a space, and JSON. The first says of which source the file
is, and how many lines were written at once with it: those are whole or the file is damaged. Each of the others is what
one ``keep`` stored. The last of them may be torn, as its agent may have died while it wrote; then nobody was told of it.
Any other damage stops the agent: what it promised to keep would be gone without a word.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from nodestate.agent.atomic_file import write_atomically
from nodestate.errors import ConfigError

MIN_LINES_COUNT: Final = 1_000
"""A file is not written anew before it has so many lines …"""
LINES_PER_ALLOCATION: Final = 4
"""… and so many for each allocation that lives."""
CHECKSUM_CHARS: Final = 8

AllocationJson = dict[str, Any]


class AllocationChange(NamedTuple):
    """What an instance has on a node from now on; None where that is nothing any more."""

    node: str
    instance: str
    allocation: AllocationJson | None


class _FileHeader(msgspec.Struct):
    v: int
    source: str
    lines: int


_decode_header = msgspec.json.Decoder(_FileHeader).decode
_decode_changes = msgspec.json.Decoder(list[AllocationChange]).decode
_encode = msgspec.json.Encoder().encode


class AllocationFile:
    """The allocations of one source. Nothing is touched before ``open``: by then the agent holds the lock of its life."""

    def __init__(self, directory: str | Path, source: str) -> None:
        self._path = Path(directory) / f"{source}.allocations"
        self._source = source
        self._of: dict[str, dict[str, AllocationJson]] = {}
        self._file: int | None = None
        self._lines = 0

    def open(self) -> dict[str, dict[str, AllocationJson]]:
        """What was kept, by node and instance. Raises ``ConfigError`` where the file is damaged or can't be written."""
        try:
            if self._path.exists():
                self._read(self._path.read_bytes())
            self._write_anew()
        except OSError as error:
            raise ConfigError(
                f"an agent must keep what it admitted on disk, and can't: {error}; see the setting state_dir"
            ) from error
        return {node: dict(instances) for node, instances in self._of.items()}

    def keep(self, changes: Sequence[AllocationChange]) -> None:
        """Store these, all or none: they are on disk when this returns. Raises ``OSError``."""
        before = [(node, instance, self._of.get(node, {}).get(instance)) for node, instance, _ in changes]
        self._apply(changes)
        try:
            if self._file is None or self._lines > max(MIN_LINES_COUNT, LINES_PER_ALLOCATION * self._count()):
                self._write_anew()
            else:
                self._append(changes)
        except OSError:
            self._apply([AllocationChange(*one) for one in reversed(before)])
            self.close()  # what is in the file now is not known: the next keep writes it anew
            raise

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    # -- inside

    def _count(self) -> int:
        return sum(map(len, self._of.values()))

    def _apply(self, changes: Sequence[AllocationChange]) -> None:
        for node, instance, allocation in changes:
            if allocation is not None:
                self._of.setdefault(node, {})[instance] = allocation
            elif node in self._of:
                self._of[node].pop(instance, None)
                if not self._of[node]:
                    del self._of[node]

    def _append(self, changes: Sequence[AllocationChange]) -> None:
        assert self._file is not None
        line = memoryview(_line(_encode(changes)))
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self._lines += 1

    def _write_anew(self) -> None:
        self.close()
        lines = [
            _line(_encode([AllocationChange(node, instance, allocation) for instance, allocation in instances.items()]))
            for node, instances in self._of.items()
        ]
        first = _line(_encode(_FileHeader(1, self._source, len(lines))))
        write_atomically(self._path, b"".join([first, *lines]))
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(lines)

    def _read(self, content: bytes) -> None:
        first, *lines = content.split(b"\n")
        try:
            about = _decode_header(_checked(first))
            if about.v != 1 or about.source != self._source:
                raise self._damaged(1, f"it is {about.source}'s, in format {about.v}")
            torn = lines.pop()  # empty where the file ends with a whole line
            for number, line in enumerate(lines):
                try:
                    self._apply(_decode_changes(_checked(line)))
                except (ValueError, msgspec.DecodeError) as error:
                    if torn or number < about.lines or number < len(lines) - 1:
                        raise self._damaged(number + 2, str(error)) from None
                    torn = line
            if len(lines) < about.lines:
                raise self._damaged(len(lines) + 2, "it ends here")
        except (ValueError, msgspec.DecodeError) as error:  # of the first line, or there is not even that
            raise self._damaged(1, str(error)) from None
        if torn:
            structlog.get_logger("nodestate.agent").warning(
                "what the agent was storing when it ended is dropped; nobody was told of it", file=str(self._path)
            )

    def _damaged(self, line: int, why: str) -> ConfigError:
        return ConfigError(
            f"{self._path} is damaged in line {line} ({why}). It says which allocations {self._source} has promised to keep: "
            "restore it, or move it away if all its instances are gone"
        )


def _line(content: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _checked(line: bytes) -> bytes:
    """The JSON of a line. Raises ``ValueError``."""
    content = line[CHECKSUM_CHARS + 1 :]
    if line[: CHECKSUM_CHARS + 1] != b"%08x " % zlib.crc32(content):
        raise ValueError("its checksum is wrong")
    return content
