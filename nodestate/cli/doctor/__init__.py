"""The doctor: ``command`` runs the checks of each part of a cell and prints their findings.

A check yields ``Finding``s. The checks stand by the part that they examine, so that a new check is a new function:
``broker_checks``, ``store_checks``, ``design_checks`` and ``agent_checks``.
"""
