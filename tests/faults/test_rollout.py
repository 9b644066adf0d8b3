"""The how-to page that turns authentication on and off, carried out on a cell under load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from harness.profile import by_profile
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import wait_until
from nodestate.model import parse_event
from tests.rollout_page import OFF, ON, STORE, commands_of
from tests.signed_cell import SignedCell

pytestmark = [pytest.mark.service, pytest.mark.thorough]

EVENTS_PER_S: Final = by_profile(fast=300.0, thorough=1_000.0)


def test_authentication_is_turned_on_and_off_under_load_and_nothing_honest_is_refused(
    cell: str, tmp_path: Path, rabbit: RabbitServer, memcached: MemcachedServer, record: Callable[[str], None]
) -> None:
    """From off to require, another secret, a revoked node that is taken back, and from require to off."""
    with SignedCell(tmp_path, rabbit.url, memcached.url, cell, rate=EVENTS_PER_S) as run:
        run.execute(commands_of("Create the keys"))
        run.follow(ON)
        run.follow(STORE, "auth_store")
        run.sign_control_record()
        run.execute(commands_of("Replace the secret"))
        run.wait_until_ok()
        assert run.dead_letters() == []

        run.revoked = run.nodes["agent0"][7]
        for reader in run.readers:
            reader.ignored = frozenset({run.revoked})
        run.execute(commands_of("Revoke the keys of a node"))
        wait_until(run.dead_letters, "no event of the revoked node is refused")
        first_at = min(letter.at for letter in run.dead_letters())
        run.notes.append(f"the revoked node was refused {first_at - run.copied_at:.0f} s after the copy of the keys")
        run.wait_until_said("dead letters", "bad-signature", "WARN")
        run.execute(commands_of("Replace the secret"))
        run.wait_until_ok(but=["dead letters"])
        refused = run.dead_letters()
        run.purge_dead_letters()
        run.wait_until_ok()
        for reader in run.readers:
            reader.ignored = frozenset()

        run.stop_signing_control_record()
        run.follow(OFF, "auth_store")
        run.follow(OFF)
        run.end()
    record(run.figures())
    run.require_nothing_noticed()
    assert run.dead_letters() == []
    assert {(parse_event(one.body).node, one.reason) for one in refused} == {(run.revoked, "bad-signature")}
    assert run.counters["dead_letters bad-signature"] == len(refused)
    assert [name for name in run.counters if name.startswith("dead_letters ")] == ["dead_letters bad-signature"]
    assert run.taken + len(refused) >= run.sent
    assert run.counters["refused_messages"] == 0
