"""A scheduler in a process of its own that follows the control record and reports its views.

``python -m tests.faults.follower MAX_AGE`` reads every 50 ms until its stdin ends. Then it prints one JSON object: the
number of reads and of fresh ones, the designs in the order in which it met them, errors, nodes that went back (I1), and
the longest time in seconds without a view that was fresh and complete.
"""

from __future__ import annotations

import json
import sys
import time
from select import select
from typing import Any

from nodestate import Reader, Version, load

READ_EVERY_S = 0.05
SHOWN_COUNT = 5


def follow(max_age: float) -> dict[str, Any]:
    """Read until stdin ends; returns the counts and violations."""
    seen: dict[str, Version] = {}
    designs: list[str] = []
    errors: list[str] = []
    regressed: list[str] = []
    reads = fresh = 0
    unfresh_s, fresh_at = 0.0, time.monotonic()
    with Reader(load()) as reader:
        while not select([sys.stdin], [], [], READ_EVERY_S)[0]:
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
        "errors": errors[:SHOWN_COUNT],
        "regressed": regressed[:SHOWN_COUNT],
        "unfresh_s": round(unfresh_s, 2),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(follow(float(sys.argv[1]))))
