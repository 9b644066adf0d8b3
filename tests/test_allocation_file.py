"""What an agent admitted is on disk before anybody is told, and a damaged file is never taken for an empty one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.agent.allocation_file import LINES_PER_ALLOCATION, MIN_LINES_COUNT, AllocationChange, AllocationFile
from nodestate.errors import ConfigError

VM: dict[str, Any] = {
    "resources": {"VCPU": 2},
    "group": "web",
    "hints": {"group_policy": "anti-affinity", "x": [1.0, None]},
}
SMALL: dict[str, Any] = {"resources": {"VCPU": 1}}


@pytest.fixture
def allocations(tmp_path: Path) -> AllocationFile:
    allocations = AllocationFile(tmp_path, "fleet")
    allocations.open()
    return allocations


def opened(folder: Path) -> dict[str, dict[str, Any]]:
    """What another life of the agent finds."""
    allocations = AllocationFile(folder, "fleet")
    found = allocations.open()
    allocations.close()
    return found


def test_what_was_kept_is_there_in_the_next_life_hints_and_all(allocations: AllocationFile, tmp_path: Path) -> None:
    allocations.keep([AllocationChange("n1", "vm-1", VM), AllocationChange("n2", "vm-2", SMALL)])
    allocations.keep(
        [
            AllocationChange("n1", "vm-3", SMALL),
            AllocationChange("n2", "vm-2", None),
            AllocationChange("n2", "vm-4", None),
        ]
    )
    assert opened(tmp_path) == {"n1": {"vm-1": VM, "vm-3": SMALL}}  # nobody closed: as after kill -9
    assert opened(tmp_path) == {"n1": {"vm-1": VM, "vm-3": SMALL}}
    allocations.close()


def test_the_first_life_begins_with_nothing(tmp_path: Path) -> None:
    assert opened(tmp_path) == {}


def test_what_was_being_stored_at_the_end_is_dropped_and_the_rest_is_there(
    allocations: AllocationFile, tmp_path: Path
) -> None:
    """Wherever the last line broke off: its orders were not answered."""
    allocations.keep([AllocationChange("n1", "vm-1", VM)])
    path = tmp_path / "fleet.allocations"
    whole = path.read_bytes()
    allocations.keep([AllocationChange("n1", "vm-2", SMALL), AllocationChange("n1", "vm-1", None)])
    content = path.read_bytes()
    allocations.close()
    for end in range(len(whole), len(content)):
        path.write_bytes(content[:end])
        assert opened(tmp_path) == {"n1": {"vm-1": VM}}
        path.write_bytes(content[:end].ljust(len(content), b"\0"))  # the length was stored, the content not
        assert opened(tmp_path) == {"n1": {"vm-1": VM}}
    path.write_bytes(content[:-20] + b"\0" * 10 + content[-10:])  # the end was stored, what is before it not
    assert opened(tmp_path) == {"n1": {"vm-1": VM}}
    path.write_bytes(content)
    assert opened(tmp_path) == {"n1": {"vm-2": SMALL}}


def test_a_file_that_is_damaged_anywhere_else_stops_the_agent(allocations: AllocationFile, tmp_path: Path) -> None:
    allocations.keep([AllocationChange("n1", "vm-1", VM)])
    allocations.keep([AllocationChange("n1", "vm-2", SMALL)])
    allocations.close()
    opened(tmp_path)  # one line for n1, written at once
    path = tmp_path / "fleet.allocations"
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content.replace(b"vm-1", b"vm-7"), content[20:], b"\0" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="is damaged in line"):
            opened(tmp_path)
        assert path.read_bytes() == damaged


def test_a_file_of_another_source_is_not_taken_over(allocations: AllocationFile, tmp_path: Path) -> None:
    allocations.close()
    (tmp_path / "fleet.allocations").rename(tmp_path / "other.allocations")
    with pytest.raises(ConfigError, match="it is fleet's"):
        AllocationFile(tmp_path, "other").open()


def test_a_folder_that_can_not_be_written_is_told_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="state_dir"):
        AllocationFile(tmp_path / "nowhere", "fleet").open()


def test_a_file_that_lives_for_long_does_not_grow_without_end(allocations: AllocationFile, tmp_path: Path) -> None:
    path = tmp_path / "fleet.allocations"
    allocations.keep([AllocationChange("n1", "stays", VM)])
    sizes = []
    for _ in range(MIN_LINES_COUNT):
        allocations.keep([AllocationChange("n1", "comes and goes", SMALL)])
        allocations.keep([AllocationChange("n1", "comes and goes", None)])
        sizes.append(path.read_bytes().count(b"\n"))
    allocations.close()
    assert max(sizes) <= MIN_LINES_COUNT + 3
    assert MIN_LINES_COUNT > LINES_PER_ALLOCATION
    assert opened(tmp_path) == {"n1": {"stays": VM}}


class FullDisk(AllocationFile):
    """Takes a part of a line while it is full."""

    full = False

    def _append(self, changes: Sequence[AllocationChange]) -> None:
        if self.full:
            with self._path.open("ab") as file:
                file.write(b"deadbeef [[")
            raise OSError(28, "No space left on device")
        super()._append(changes)


def test_after_a_write_that_failed_the_next_one_starts_a_whole_file(tmp_path: Path) -> None:
    """What is behind the last whole line then is not known, and nothing may be written behind it."""
    allocations = FullDisk(tmp_path, "fleet")
    allocations.open()
    allocations.keep([AllocationChange("n1", "vm-1", VM)])
    allocations.full = True
    with pytest.raises(OSError, match="No space"):
        allocations.keep([AllocationChange("n1", "vm-2", SMALL), AllocationChange("n1", "vm-1", None)])
    assert opened(tmp_path) == {"n1": {"vm-1": VM}}
    allocations.full = False
    allocations.keep([AllocationChange("n1", "vm-3", SMALL)])
    assert opened(tmp_path) == {"n1": {"vm-1": VM, "vm-3": SMALL}}
    allocations.close()


CHANGES = st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.sampled_from([VM, SMALL, None]))


@given(st.lists(st.lists(CHANGES, min_size=1, max_size=4), max_size=8))
def test_every_life_finds_what_the_one_before_kept(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    model: dict[tuple[str, str], Any] = {}
    for batch in batches:
        allocations = AllocationFile(folder, "fleet")
        allocations.open()
        allocations.keep([AllocationChange(*change) for change in batch])
        model.update({(node, instance): allocation for node, instance, allocation in batch})
    found = {(node, name): one for node, instances in opened(folder).items() for name, one in instances.items()}
    assert found == {key: allocation for key, allocation in model.items() if allocation is not None}
