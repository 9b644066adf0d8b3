r"""The allocations that an agent admitted, on disk: one file for each source of state.

    (no file) --open--> empty        file --open: read, and rewritten without ended allocations--> open
    open --save: one line, one fsync--> open
    open --save fails: no change is kept--> the next save rewrites the file

Each line is a checksum (CRC-32, as eight hexadecimal digits), a space, and JSON. The first line is a header: it names
the source, and the number of lines that were written together with the header. If one of those lines is not whole, the
file is damaged. Each later line has the changes of one ``save``.

If the agent died while it wrote, the last line may be torn. The orders of that line were not answered, so the line is
dropped. Any other damage stops the agent. Otherwise allocations that the agent promised to keep would be lost silently.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from nodestate.agent.state_files import open_state_file, read_state_file, write_atomically
from nodestate.errors import ConfigError

MIN_LINES_COUNT: Final = 1_000
"""A file of at most this many lines is not rewritten."""
LINES_PER_ALLOCATION: Final = 4
"""A longer file is rewritten when it has more lines per allocation than this."""
CHECKSUM_CHARS: Final = 8
"""Length of a line's checksum."""

AllocationJson = dict[str, Any]
"""An allocation, in the form of a node's state."""


class AllocationChange(NamedTuple):
    """A change of one instance's allocation on a node: a new allocation, or the end of the allocation."""

    node: str
    """The node's name."""
    instance: str
    """The instance's id."""
    allocation: AllocationJson | None
    """The instance's new allocation; None if the allocation ended."""


class _FileHeader(msgspec.Struct):
    """The first line of a file."""

    v: int
    """Version of the format: 1."""
    source: str
    """Name of the source whose allocations these are."""
    lines: int
    """Number of lines that were written together with the header."""


_decode_header = msgspec.json.Decoder(_FileHeader).decode
_decode_changes = msgspec.json.Decoder(list[AllocationChange]).decode
_encode = msgspec.json.Encoder().encode


class AllocationFile:
    """The stored allocations of one source.

    The file is neither read nor written before ``open``. The agent calls ``open`` once it holds the lock of its
    incarnation, so two agents never use the file at the same time.

    Args:
        directory: where the file is.
        source: name of the source, and the first part of the file's name.
    """

    def __init__(self, directory: str | Path, source: str) -> None:
        self._path = Path(directory) / f"{source}.allocations"
        """The file's path."""
        self._source = source
        """Name of the source."""
        self._by_node: dict[str, dict[str, AllocationJson]] = {}
        """All stored allocations, by node and instance."""
        self._file: int | None = None
        """File descriptor for appending; None if the next ``save`` must rewrite the file."""
        self._lines = 0
        """Number of lines in the file, without the header."""

    def open(self) -> dict[str, dict[str, AllocationJson]]:
        """Read the file, and rewrite it without ended allocations.

        Returns the stored allocations by node and by instance. Raises ``ConfigError`` if the file is damaged or can't
        be written.
        """
        try:
            content = read_state_file(self._path)
            if content is not None:
                self._read(content)
            self._rewrite()
        except OSError as error:
            raise ConfigError(
                f"the agent can't store its allocations: {error}; set state_dir to a directory that it may write"
            ) from error
        return {node: dict(instances) for node, instances in self._by_node.items()}

    def save(self, changes: Sequence[AllocationChange]) -> None:
        """Store these changes. They are on disk when this returns.

        Raises ``OSError`` if they can't be stored; none of them is kept then.
        """
        before = [(node, instance, self._by_node.get(node, {}).get(instance)) for node, instance, _ in changes]
        self._apply(changes)
        try:
            if self._file is None or self._lines > max(MIN_LINES_COUNT, LINES_PER_ALLOCATION * self._count()):
                self._rewrite()
            else:
                self._append(changes)
        except OSError:
            self._apply([AllocationChange(*one) for one in reversed(before)])
            self.close()  # the end of the file is unknown now: the next save rewrites the file
            raise

    def close(self) -> None:
        """Close the file. Its content stays on disk."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    # -- inside

    def _count(self) -> int:
        return sum(map(len, self._by_node.values()))

    def _apply(self, changes: Sequence[AllocationChange]) -> None:
        for node, instance, allocation in changes:
            if allocation is not None:
                self._by_node.setdefault(node, {})[instance] = allocation
            elif node in self._by_node:
                self._by_node[node].pop(instance, None)
                if not self._by_node[node]:
                    del self._by_node[node]

    def _append(self, changes: Sequence[AllocationChange]) -> None:
        assert self._file is not None
        line = memoryview(_line(_encode(changes)))
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self._lines += 1

    def _rewrite(self) -> None:
        self.close()
        lines = [
            _line(_encode([AllocationChange(node, instance, allocation) for instance, allocation in instances.items()]))
            for node, instances in self._by_node.items()
        ]
        header = _line(_encode(_FileHeader(1, self._source, len(lines))))
        write_atomically(self._path, b"".join([header, *lines]))
        self._file = open_state_file(self._path, os.O_WRONLY | os.O_APPEND)
        self._lines = len(lines)

    def _read(self, content: bytes) -> None:
        first, *lines = content.split(b"\n")
        try:
            header = _decode_header(_checked(first))
            if header.v != 1 or header.source != self._source:
                raise self._damaged(1, f"it belongs to {header.source} and has format {header.v}")
            torn = lines.pop()  # empty if the file ends with a whole line
            for number, line in enumerate(lines):
                try:
                    self._apply(_decode_changes(_checked(line)))
                except (ValueError, msgspec.DecodeError) as error:
                    if torn or number < header.lines or number < len(lines) - 1:
                        raise self._damaged(number + 2, str(error)) from None
                    torn = line
            if len(lines) < header.lines:
                raise self._damaged(len(lines) + 2, "it ends here")
        except (ValueError, msgspec.DecodeError) as error:  # the header is damaged or missing
            raise self._damaged(1, str(error)) from None
        if torn:
            structlog.get_logger("nodestate.agent").warning(
                "dropped a torn last line: its orders were not answered", file=str(self._path)
            )

    def _damaged(self, line: int, reason: str) -> ConfigError:
        return ConfigError(
            f"{self._path} is damaged in line {line} ({reason}). It holds the allocations that {self._source} "
            "has promised to keep: restore the file, or move it away if all its instances are gone"
        )


def _line(content: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _checked(line: bytes) -> bytes:
    """Return the JSON of a line. Raises ``ValueError`` if the line's checksum is wrong."""
    content = line[CHECKSUM_CHARS + 1 :]
    if line[: CHECKSUM_CHARS + 1] != b"%08x " % zlib.crc32(content):
        raise ValueError("its checksum is wrong")
    return content
