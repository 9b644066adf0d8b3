"""A scheduler in a process of its own that follows the control record, and tells what it saw: run as a module.

Reads every 50 ms until its stdin ends, then prints one JSON object: reads, designs in the order in which it met them,
errors, nodes that went back (I1), and how long the longest time without a fresh and complete view was.
"""

from __future__ import annotations

import json
import sys
import time
from select import select
from typing import Any

from nodestate import Reader, Version, load

EVERY_S = 0.05


def follow(max_age: float) -> dict[str, Any]:
    """Read until told to stop."""
    seen: dict[str, Version] = {}
    designs: list[str] = []
    errors: list[str] = []
    regressed: list[str] = []
    reads = fresh = 0
    unfresh_s, fresh_at = 0.0, time.monotonic()
    with Reader(load()) as reader:
        while not select([sys.stdin], [], [], EVERY_S)[0]:
            try:
                view = reader.read(max_age=max_age, on_stale="flag")
            except Exception as error:  # noqa: BLE001 - a read must not raise, whatever is switched
                errors.append(repr(error))
                continue
            reads += 1
            design = f"{view.design}@{len(view.partitions)}"
            if not designs or designs[-1] != design:
                designs.append(design)
            now = time.monotonic()
            if not view.stale and not view.incomplete:
                fresh, fresh_at = fresh + 1, now
            elif fresh:
                unfresh_s = max(unfresh_s, now - fresh_at)
            for name, node in view.nodes.items():
                if node.version < seen.get(name, node.version):
                    regressed.append(f"{name} went from {seen[name]} to {node.version} in {design}")
                seen[name] = node.version
            regressed += [f"{name} vanished in {design}" for name in seen.keys() - set(view.nodes)]
    return {
        "reads": reads,
        "fresh": fresh,
        "designs": designs,
        "errors": errors[:5],
        "regressed": regressed[:5],
        "unfresh_s": round(unfresh_s, 2),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(follow(float(sys.argv[1]))))
