"""The evaluation as a page: reads all records of a folder, and writes what an operator can act on.

``records`` finds figures, ``compare`` sets the designs against each other, ``sections`` and ``advice`` say what follows,
``draw`` makes the plots, ``page`` writes. No figure is typed by hand: what no record has, the page says is missing.
"""

from bench.report.page import ReportError, write_report

__all__ = ["ReportError", "write_report"]
