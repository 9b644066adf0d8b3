"""Measures decisions of OpenStack on the fleet on which nodestate's schedulers decide.

Nova filters and weighs the host states of all nodes; Placement finds candidates and takes claims. Nova leaves resources
and traits to Placement, so its filters check less than nodestate's filters.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bench.peers.openstack import openstack
from bench.record import Case, Measure
from bench.scenario import ReportProgress, Settings
from bench.scheduling.hosts import FLAVOURS, Hosts

OPENSTACK: Final = ("nova scheduler", "placement")
"""Labels of the cases."""
SHARE: Final = 0.5
"""Share of the seconds to measure; filtering, candidates and claims get a third of it each."""


def measure_nova(
    hosts: Hosts, settings: Settings, report_progress: ReportProgress
) -> tuple[list[Case], dict[str, str]]:
    """Return both cases and the versions. Raises ServerMissingError if OpenStack is not installed."""
    for number in range(len(hosts)):
        hosts.report(number)
    nodes = [
        {"capacity": dict(hosts.kind(number).capacity), "usage": hosts.usage(number)} for number in range(len(hosts))
    ]
    flavours = [flavour.resources for flavour in FLAVOURS if not flavour.traits]
    with openstack(report_progress) as own:
        report_progress(f"openstack, {len(hosts):,} nodes: deciding", 0.8)
        asked = own.folder / "hosts.json"
        asked.write_bytes(msgspec.json.encode({"nodes": nodes, "flavours": flavours}))
        found = own.run("nova_program.py", settings.seconds * SHARE, settings.seed)
    given = {"full": hosts.full, "filters": found["filters"], "weighers": found["weighers"]}
    decided = "for each request all nodes passed Nova's filters and were returned in the order of their weights"
    claimed = f"the database of Placement held all {len(found['placement']['claim'])} claims and no others"
    return [
        Case(OPENSTACK[0], len(hosts), given, _measures(found["nova"]), {}, [decided]),
        Case(OPENSTACK[1], len(hosts), {"full": hosts.full}, _measures(found["placement"]), {}, [claimed]),
    ], dict(own.versions)


def _measures(samples: dict[str, list[float]]) -> dict[str, Measure]:
    return {name: Measure.of("ms", values) for name, values in samples.items()}
