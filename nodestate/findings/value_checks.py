"""Checks of signatures of stored values: how many are signed, and with which keys.

The inspection of a cell reads all values that a new reader needs, and counts the signed, unsigned and refused ones. So
the figures show whether the next mode of ``auth_store`` would refuse a value, and whether an old key can be revoked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from nodestate.config import Config
from nodestate.designs.connections import open_claims
from nodestate.errors import StoreError
from nodestate.findings.finding import Finding, found, well
from nodestate.model.partitioning import partition_of
from nodestate.ports import ClaimStore, SystemClock
from nodestate.store import keys
from nodestate.store.signed_values import LACKING, ValueAuth
from nodestate.store.wire import BAD_SIGNATURE, UNSIGNED
from nodestate.text import count_text

ABOUT: Final = "stored values"
FETCH_COUNT: Final = 2_000
"""Most claim records that one round trip reads."""


def examine_values(config: Config, values: ValueAuth, nodes: Sequence[str]) -> list[Finding]:
    """Examine the signatures of stored values. Returns no findings if ``auth_store`` is off.

    Args:
        config: settings of the cell.
        values: checked the values that an inspection of the cell has read, and counted them.
        nodes: names of all nodes. Their claim records are read here and counted, too, and so is the control record.
    """
    if config.auth_store == "off":
        return []
    servers = open_claims(config, SystemClock(), values)
    try:
        for number, server in enumerate(servers):
            wanted = [keys.control(config.cell)]
            for copy, key_of in enumerate((keys.claim, keys.claim_copy)[: config.replicas_count]):
                mine = (name for name in nodes if (partition_of(name, len(servers)) + copy) % len(servers) == number)
                wanted += [key_of(config.cell, name) for name in mine]
            _read(server, wanted)
    except StoreError as error:
        return [found("claims-uncounted", ABOUT, f"claim records are not counted: {error}"), *_findings(values)]
    finally:
        for server in servers:
            server.close()
    return list(_findings(values))


def _read(server: ClaimStore, names: Sequence[str]) -> None:
    for at in range(0, len(names), FETCH_COUNT):
        server.fetch(names[at : at + FETCH_COUNT])


def _findings(values: ValueAuth) -> Iterator[Finding]:
    counts = values.counts
    all_values = count_text(counts.signed + counts.unsigned + counts.refused, "stored value")
    again = (
        "owners of partitions write them again within seconds, and a running scheduler claim records within a minute, "
        "as each 'nodestate boot' does at its start"
    )
    if counts.refused:
        reason = BAD_SIGNATURE if BAD_SIGNATURE in counts.examples else UNSIGNED
        says = f"{counts.refused:,} of {all_values} are refused, for example {counts.examples[reason]}: {reason}"
        advice = (
            f"{again}. If some remain, another program writes into memcached, or a process signs with other keys or "
            "not at all: compare its auth_store and keys_file"
        )
        yield found("values-refused", ABOUT, says, advice)
    if counts.unsigned:
        says = f"{counts.unsigned:,} of {all_values} are unsigned, for example {counts.examples[UNSIGNED]}"
        advice = f"set auth_store and keys_file for all consumers and schedulers, and restart them: {again}"
        yield found("values-unsigned", ABOUT, says, advice)
    if counts.lacking:
        says = f"{counts.lacking:,} of {all_values} lack the code of a secret, for example {counts.examples[LACKING]}"
        advice = f"{again}. Revoke no secret before this line is gone"
        yield found("values-lack-code", ABOUT, says, advice)
    if not counts.refused and not counts.unsigned and not counts.lacking:
        says = f"all {all_values} are signed, with keys of {' and '.join(values.key_ids)}"
        yield well(ABOUT, says if counts.signed else "none is stored")
