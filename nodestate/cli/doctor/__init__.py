"""The doctor: ``command`` runs the checks of each part of a cell and prints their findings.

A check is a function that yields or returns ``Finding``s. Each module has the checks of one part of a cell:
``broker_checks``, ``store_checks``, ``design_checks``, ``agent_checks``, ``signature_checks`` and ``value_checks``.
"""
