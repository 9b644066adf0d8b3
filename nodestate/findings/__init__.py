"""Findings: the faults of a cell, as ``nodestate doctor`` and ``nodestate serve`` name them.

``finding_table`` has the code, the severity and the meaning of each finding. A check is a function that yields or
returns ``Finding``s. Each module has the checks of one part of a cell: ``broker_checks``, ``store_checks``,
``design_checks``, ``agent_checks``, ``signature_checks`` and ``value_checks``. ``cell_check`` calls all of them,
``health`` sums their findings up, and ``node_checks`` has the checks of one node.
"""

from nodestate.findings.cell_check import examine_cell
from nodestate.findings.finding import Finding, FindingDocument
from nodestate.findings.finding_table import FINDINGS, FindingKind
from nodestate.findings.health import HealthDocument, health_of
from nodestate.findings.node_checks import examine_node

__all__ = [
    "FINDINGS",
    "Finding",
    "FindingDocument",
    "FindingKind",
    "HealthDocument",
    "examine_cell",
    "examine_node",
    "health_of",
]
