"""Allocations are on disk before their order is answered, and a damaged file is never taken for an empty one."""

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
    """The allocations that the next incarnation of the agent finds."""
    allocations = AllocationFile(folder, "fleet")
    found = allocations.open()
    allocations.close()
    return found


def test_stored_allocations_with_their_hints_are_there_in_the_next_incarnation(
    allocations: AllocationFile, tmp_path: Path
) -> None:
    allocations.save([AllocationChange("n1", "vm-1", VM), AllocationChange("n2", "vm-2", SMALL)])
    allocations.save(
        [
            AllocationChange("n1", "vm-3", SMALL),
            AllocationChange("n2", "vm-2", None),
            AllocationChange("n2", "vm-4", None),
        ]
    )
    assert opened(tmp_path) == {"n1": {"vm-1": VM, "vm-3": SMALL}}  # the file was not closed: as after kill -9
    assert opened(tmp_path) == {"n1": {"vm-1": VM, "vm-3": SMALL}}
    allocations.close()


def test_the_first_incarnation_begins_without_allocations(tmp_path: Path) -> None:
    assert opened(tmp_path) == {}


def test_a_torn_last_line_is_dropped_and_everything_before_it_is_kept(
    allocations: AllocationFile, tmp_path: Path
) -> None:
    """The last line may end at any byte. Its orders were not answered, so nothing that was promised is lost."""
    allocations.save([AllocationChange("n1", "vm-1", VM)])
    path = tmp_path / "fleet.allocations"
    whole = path.read_bytes()
    allocations.save([AllocationChange("n1", "vm-2", SMALL), AllocationChange("n1", "vm-1", None)])
    content = path.read_bytes()
    allocations.close()
    for end in range(len(whole), len(content)):
        path.write_bytes(content[:end])
        assert opened(tmp_path) == {"n1": {"vm-1": VM}}
        path.write_bytes(content[:end].ljust(len(content), b"\0"))  # only the length was stored
        assert opened(tmp_path) == {"n1": {"vm-1": VM}}
    path.write_bytes(content[:-20] + b"\0" * 10 + content[-10:])  # the middle was not stored
    assert opened(tmp_path) == {"n1": {"vm-1": VM}}
    path.write_bytes(content)
    assert opened(tmp_path) == {"n1": {"vm-2": SMALL}}


def test_a_file_that_is_damaged_before_its_last_line_stops_the_agent(
    allocations: AllocationFile, tmp_path: Path
) -> None:
    allocations.save([AllocationChange("n1", "vm-1", VM)])
    allocations.save([AllocationChange("n1", "vm-2", SMALL)])
    allocations.close()
    opened(tmp_path)  # rewrites the file: one line for n1
    path = tmp_path / "fleet.allocations"
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content.replace(b"vm-1", b"vm-7"), content[20:], b"\0" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="is damaged in line"):
            opened(tmp_path)
        assert path.read_bytes() == damaged


def test_an_allocation_file_of_another_source_is_refused(allocations: AllocationFile, tmp_path: Path) -> None:
    allocations.close()
    (tmp_path / "fleet.allocations").rename(tmp_path / "other.allocations")
    with pytest.raises(ConfigError, match="it belongs to fleet"):
        AllocationFile(tmp_path, "other").open()


def test_an_unwritable_folder_is_refused_and_the_error_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="state_dir"):
        AllocationFile(tmp_path / "nowhere", "fleet").open()


def test_an_allocation_file_is_compacted_while_the_agent_runs(allocations: AllocationFile, tmp_path: Path) -> None:
    path = tmp_path / "fleet.allocations"
    allocations.save([AllocationChange("n1", "stays", VM)])
    sizes = []
    for _ in range(MIN_LINES_COUNT):
        allocations.save([AllocationChange("n1", "comes and goes", SMALL)])
        allocations.save([AllocationChange("n1", "comes and goes", None)])
        sizes.append(path.read_bytes().count(b"\n"))
    allocations.close()
    assert max(sizes) <= MIN_LINES_COUNT + 3
    assert MIN_LINES_COUNT > LINES_PER_ALLOCATION
    assert opened(tmp_path) == {"n1": {"stays": VM}}


class FullDisk(AllocationFile):
    """While the disk is full, it takes only a part of a line."""

    full = False

    def _append(self, changes: Sequence[AllocationChange]) -> None:
        if self.full:
            with self._path.open("ab") as file:
                file.write(b"deadbeef [[")
            raise OSError(28, "No space left on device")
        super()._append(changes)


def test_the_write_after_a_failed_one_rewrites_the_file(tmp_path: Path) -> None:
    """After a failed write the end of the file is unknown, so nothing may be appended to it."""
    allocations = FullDisk(tmp_path, "fleet")
    allocations.open()
    allocations.save([AllocationChange("n1", "vm-1", VM)])
    allocations.full = True
    with pytest.raises(OSError, match="No space"):
        allocations.save([AllocationChange("n1", "vm-2", SMALL), AllocationChange("n1", "vm-1", None)])
    assert opened(tmp_path) == {"n1": {"vm-1": VM}}
    allocations.full = False
    allocations.save([AllocationChange("n1", "vm-3", SMALL)])
    assert opened(tmp_path) == {"n1": {"vm-1": VM, "vm-3": SMALL}}
    allocations.close()


CHANGES = st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.sampled_from([VM, SMALL, None]))


@given(st.lists(st.lists(CHANGES, min_size=1, max_size=4), max_size=8))
def test_every_incarnation_finds_the_allocations_of_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    model: dict[tuple[str, str], Any] = {}
    for batch in batches:
        allocations = AllocationFile(folder, "fleet")
        allocations.open()
        allocations.save([AllocationChange(*change) for change in batch])
        model.update({(node, instance): allocation for node, instance, allocation in batch})
    found = {(node, name): one for node, instances in opened(folder).items() for name, one in instances.items()}
    assert found == {key: allocation for key, allocation in model.items() if allocation is not None}
