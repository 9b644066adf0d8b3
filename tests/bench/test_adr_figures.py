"""The figures of the decisions can be measured: all alternatives carry the same content, and every table has rows."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from bench.adr_figures import checkpoint, codec, partitions, ring, round_trips
from bench.adr_figures.__main__ import ADR, DECISIONS, main


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (ring, "ring"),
        (checkpoint, "checkpoint"),
        (codec, "codec"),
        pytest.param(partitions, "partitions", marks=pytest.mark.service),
        pytest.param(round_trips, "lockstep", marks=pytest.mark.service),
    ],
)
def test_a_decision_is_measured_after_its_alternatives_were_compared(
    module: ModuleType,
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With few nodes, few partitions and one call of each alternative: the figures mean nothing here."""

    def once(call: Callable[[], object], *_: object, **__: object) -> float:
        call()
        return 1.0

    for small, value in (
        ("median_us", once),
        ("median_ms", once),
        ("NODES", 300),
        ("PARTITION_COUNTS", (1, 4)),
        ("TRIES", 500),
        ("COMMITS_COUNT", 50),
    ):
        if hasattr(module, small):
            monkeypatch.setattr(module, small, value)
    if hasattr(module, "MemcachedServer"):
        request.getfixturevalue("memcached")  # skips the test if there is no memcached
    tables = [table for table in DECISIONS[name].measure().values() if isinstance(table, list)]
    assert tables
    assert all(tables)
    assert "| " in capsys.readouterr().out


def test_each_decision_with_figures_has_one_page() -> None:
    for decision in DECISIONS.values():
        [page] = ADR.glob(f"{decision.number}-*.md")
        assert "python -m bench.adr_figures" in page.read_text(encoding="utf-8")


def test_a_decision_without_figures_is_bad_usage() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["no-such-decision"])
