"""Types are described to msgspec while modules are imported, because msgspec does not lock its descriptions."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

PROGRAM: Final = """
import msgspec._utils
from nodestate import load
from nodestate.model import Change, Report, fold
from nodestate.scheduling import Request, parse, parse_group
import msgspec

def fail(kind):
    raise AssertionError(f"{kind} is described only now: call build_type_info where it is defined")

msgspec._utils._get_class_mro_and_typevar_mappings = fail
load(environ={}, file="/dev/null")
group = {"name": "g", "policy": "affinity"}
parse({"resources": {"VCPU": 1}, "group": group})
Request(instances=("a",), resources={"VCPU": 1})
parse_group({"members": [{"instances": ["a"], "resources": {"VCPU": 1}}], "group": group})
encode = msgspec.msgpack.encode
fields = {"node": "n", "incarnation": 1_763_787_600, "reported_at": 1.8e9}
inventory = {"VCPU": {"total": 1.0}}
state = {"usage": {"VCPU": 1.0}, "allocations": {"vm": {"resources": {"VCPU": 1}}}, "inventory": inventory}
record = fold(None, Report(**fields, generation=1, state=msgspec.Raw(encode(state)))).record
patch = {"zone": "b", "inventory": {"VCPU": {"total": 2.0}}}
fold(record, Change(**fields, generation=2, patch=msgspec.Raw(encode(patch))))
"""


def test_no_first_use_of_a_type_describes_it_to_msgspec() -> None:
    """Two threads that describe one type at the same time crash the interpreter: two readers, or two schedulers."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    assert done.returncode == 0, done.stderr[-2_000:]
