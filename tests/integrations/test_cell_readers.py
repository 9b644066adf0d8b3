"""The settings of nodestate cells by Nova cell, and the readers of one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodestate import Config, Reader
from nodestate.errors import ConfigError
from nodestate.integrations.nova.cell_readers import CellReaders
from nodestate.integrations.nova.cell_settings import cell_settings
from tests.integrations.nova_cell import CELL, MAX_AGE_S, SILENT_SHARE, NovaCell, uuid_of


def test_one_nova_cell_needs_one_file(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('cell = "one"\n')
    assert cell_settings(["a"], str(tmp_path / "one.toml"), {})["a"].cell == "one"


def test_several_nova_cells_need_a_file_each_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable such as NODESTATE_CELL would give all cells one name, and mix their nodes."""
    monkeypatch.setenv("NODESTATE_CELL", "mixed")
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(f'cell = "{name}"\n')
    files = {"a": str(tmp_path / "one.toml"), "b": str(tmp_path / "two.toml")}
    found = cell_settings(["a", "b", "c"], "", files)
    assert {uuid: config.cell for uuid, config in found.items()} == {"a": "one", "b": "two"}
    with pytest.raises(ConfigError, match="Nova has 2 cells"):
        cell_settings(["a", "b"], "", {})
    with pytest.raises(ConfigError, match="names b, and Nova's cells are a"):
        cell_settings(["a"], "", files)


class TestReaders:
    @pytest.fixture
    def cell(self) -> NovaCell:
        cell = NovaCell()
        cell.add_host("c1")
        cell.begin()
        return cell

    @pytest.fixture
    def opened(self) -> list[int]:
        """The process id at each opening of a reader."""
        return []

    @pytest.fixture
    def readers(self, cell: NovaCell, opened: list[int]) -> CellReaders:
        def open_reader(_config: Config) -> Reader:
            opened.append(os.getpid())
            return Reader(cell.config, design="snapshot", stores=cell.stores, clock=cell.clock)

        return CellReaders(lambda: {CELL: cell.config}, open_reader)

    def test_a_view_is_read_by_one_reader_that_is_opened_at_the_first_read(
        self, readers: CellReaders, opened: list[int]
    ) -> None:
        assert opened == []
        for _ in range(3):
            found = readers.read([CELL], MAX_AGE_S, SILENT_SHARE)
            assert isinstance(found, list)
            assert set(found[0].entries) == {uuid_of("c1")}
        assert opened == [os.getpid()]

    def test_another_process_opens_its_own_reader(
        self, readers: CellReaders, opened: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        readers.read([CELL], MAX_AGE_S, SILENT_SHARE)
        monkeypatch.setattr(os, "getpid", lambda: 7)
        assert isinstance(readers.read([CELL], MAX_AGE_S, SILENT_SHARE), list)
        assert opened[1:] == [7]

    def test_entries_of_a_request_do_not_change_with_later_views(self, readers: CellReaders, cell: NovaCell) -> None:
        before = readers.read([CELL], MAX_AGE_S, SILENT_SHARE)
        cell.add_host("c2")
        cell.poll()
        after = readers.read([CELL], MAX_AGE_S, SILENT_SHARE)
        assert isinstance(before, list)
        assert isinstance(after, list)
        assert (len(before[0].entries), len(after[0].entries)) == (1, 2)

    def test_an_error_is_a_reason_and_never_reaches_nova(self, readers: CellReaders, cell: NovaCell) -> None:
        assert readers.read(["other"], MAX_AGE_S, SILENT_SHARE) == (
            "Nova's cell other has no nodestate cell: name it in [nodestate] cells"
        )
        cell.clock.advance(60.0)
        reason = readers.read([CELL], MAX_AGE_S, SILENT_SHARE)
        assert isinstance(reason, str)
        assert "accepted age is 10 s" in reason

        def settings() -> dict[str, Config]:
            raise ConfigError("no file")

        assert CellReaders(settings).read([CELL], MAX_AGE_S, SILENT_SHARE) == "no file"

    def test_instances_of_a_host_with_several_nodes_are_those_of_all(
        self, readers: CellReaders, cell: NovaCell
    ) -> None:
        """Nova gives each node of an ironic host the instances of the whole host."""
        compute = dict(cell.state("c1")["namespaces"]["nova"]["compute"])
        names = {"uuid": uuid_of("c1b"), "host": "c1", "hypervisor_hostname": "c1b", "updated_at": None}
        cell.insert("compute_nodes", **{**compute, **names})
        cell.add_instance("vm1", "c1")
        cell.add_instance("vm2", "c1", node="c1b")
        cell.poll()
        found = readers.read([CELL], MAX_AGE_S, SILENT_SHARE)
        assert isinstance(found, list)
        [view] = found
        for entry in view.entries.values():
            assert set(view.instances_of_host(entry)) == {uuid_of("vm1"), uuid_of("vm2")}
