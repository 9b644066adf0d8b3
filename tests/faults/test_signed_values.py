"""Signatures of stored values are turned on and off, and their secret is replaced, on a cell under load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from harness.profile import by_profile
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import wait_until
from nodestate.designs.connections import open_memcached
from nodestate.ports import Put, SystemClock, Write
from nodestate.store import keys
from nodestate.store.memcached import open_stores
from nodestate.store.signed_values import HEADER_BYTES, SIGNED
from tests.signed_cell import ReadingThread, SignedCell

pytestmark = [pytest.mark.service, pytest.mark.thorough]

EVENTS_PER_S: Final = by_profile(fast=300.0, thorough=1_000.0)
CELL_FILE: Final = "/etc/nodestate/cell.keys"


class CellWithSignedValues(SignedCell):
    """A cell whose steps change ``auth_store`` and nothing else."""

    def _settings(self, mode: str, place: str) -> dict[str, str]:
        agent = place.startswith("agent")
        file = str(self.folder / f"{place}.keys") if mode != "off" and not agent else ""
        return self.environment | {"NODESTATE_AUTH_STORE": "off" if agent else mode, "NODESTATE_KEYS_FILE": file}

    def restart_in(self, mode: str) -> None:
        """Restart consumers, schedulers and the reader of this mode one by one. The readers of the first mode go on."""
        self.mode = mode
        for consumer in self.consumers:
            self._restart(consumer)
            self.wait_until_said("queues", "each with 2 consumers", "OK")
        for scheduler in self.schedulers:
            scheduler.stop()
            scheduler.start(self.config(mode))
        self.readers[-1].stop()
        self.readers.append(ReadingThread(self.config(mode), "snapshot"))
        self.readers[-1].name = f"reader in mode {mode}"
        self._open.callback(self.readers[-1].stop)
        self.readers[-1].start()

    def wait_until_signed(self) -> None:
        """Wait until doctor says that all stored values are signed as they should be."""
        self.wait_until_said("stored values", "^all .* stored values are signed", "OK")

    def operate(self, *words: str) -> None:
        """Run a command on the operator's file of the cell, and copy it to all processes that need it."""
        self._execute([*words, "--keys-file", CELL_FILE])
        self._copy_cell_file()

    def stored(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the stored bytes of some items."""
        [store] = open_stores(self.config("off"))
        found = {str(key): item.value for key, item in store.fetch(names).items()}
        store.close()
        return found


def test_stored_values_are_signed_under_load_and_no_reader_notices(
    cell: str, tmp_path: Path, rabbit: RabbitServer, memcached: MemcachedServer, record: Callable[[str], None]
) -> None:
    """From off to require, another secret, a forged value, and back to off."""
    with CellWithSignedValues(tmp_path, rabbit.url, memcached.url, cell, rate=EVENTS_PER_S) as run:
        run.operate("key", "init")
        run.readers.append(ReadingThread(run.config("off"), "snapshot"))
        run.readers[-1].start()
        for mode in ("accept", "warn", "require"):
            run.restart_in(mode)
            run.wait_until_signed()

        run.operate("key", "rotate")
        for scheduler in run.schedulers:
            scheduler.stop()
            scheduler.start(run.config(run.mode))
        run.wait_until_signed()
        run.operate("key", "revoke", run.old_id)
        run.wait_until_signed()
        assert all(thread.stale == [] for thread in run.readers)

        name = run.nodes["agent0"][0]
        for thread in run.readers:
            thread.ignored = frozenset({name})
        partitions = run.config("off").partitions
        names = [f"{keys.prefix(cell, partitions, number, 's')}:node:{name}" for number in range(partitions)]
        [(key, value)] = run.stored(names).items()
        assert value.startswith(SIGNED)
        [raw], [signing] = (
            open_stores(run.config("off")),
            open_memcached(run.config("require"), memcached.url, SystemClock()),
        )
        raw.write([Write(Put.CAS, key, value[HEADER_BYTES:], raw.fetch([key])[key].cas)])
        wait_until(lambda: run.stored([key])[key].startswith(SIGNED), "the forged value was not replaced")
        assert signing.fetch([key])[key].value.startswith(b"N\x02")
        for store in (raw, signing):
            store.close()

        for mode in ("accept", "off"):
            run.restart_in(mode)
        wait_until(lambda: not run.stored([key])[key].startswith(SIGNED), "the value was not written unsigned again")
        run.end()
    record(run.figures())
    run.require_nothing_noticed()
    assert run.counters["dead_letters"] == 0
