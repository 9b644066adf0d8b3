"""OpenStack's own decisions on the fleet that nodestate's schedulers are given: Nova's filters and weighers over host states
of all nodes, and Placement's candidates and claims.

Nova leaves room and traits to Placement, so its filters look at less than nodestate's do.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bench.peers.openstack import openstack
from bench.record import Case, Measure
from bench.scenario import ReportProgress, Settings
from bench.scheduling.hosts import FLAVOURS, Hosts

OPENSTACK: Final = ("nova scheduler", "placement")
"""What its cases are called."""
SHARE: Final = 0.5
"""Of the timed seconds; a third of it for each of the three."""


def measure_nova(
    hosts: Hosts, settings: Settings, report_progress: ReportProgress
) -> tuple[list[Case], dict[str, str]]:
    """Both cases, with versions. Raises ServerMissingError."""
    for number in range(len(hosts)):
        hosts.report(number)
    nodes = [
        {"capacity": dict(hosts.kind(number).capacity), "usage": hosts.usage(number)} for number in range(len(hosts))
    ]
    flavours = [flavour.resources for flavour in FLAVOURS if not flavour.traits]
    with openstack(report_progress) as own:
        report_progress(f"openstack, {len(hosts):,} nodes: decides", 0.8)
        asked = own.folder / "hosts.json"
        asked.write_bytes(msgspec.json.encode({"nodes": nodes, "flavours": flavours}))
        found = own.run("nova_program.py", settings.seconds * SHARE, settings.seed)
    given = {"full": hosts.full, "filters": found["filters"], "weighers": found["weighers"]}
    decided = "each time all nodes passed Nova's filters and came back in the order of their weights"
    claimed = f"Placement's database held all {len(found['placement']['claim'])} claims, and no other"
    return [
        Case(OPENSTACK[0], len(hosts), given, _measures(found["nova"]), {}, [decided]),
        Case(OPENSTACK[1], len(hosts), {"full": hosts.full}, _measures(found["placement"]), {}, [claimed]),
    ], dict(own.versions)


def _measures(samples: dict[str, list[float]]) -> dict[str, Measure]:
    return {name: Measure.of("ms", values) for name, values in samples.items()}
