"""The evaluation: reads all records of a folder and writes a page from which an operator can choose a design.

``records`` finds figures, ``comparison`` compares the designs, the ``*_sections`` and ``advice`` write the text,
``plots`` draws the plots, ``markdown`` writes the page, and ``html_page`` renders the same page as one HTML file. Every
figure comes from a record; if no record has a figure, the page says that it is missing.
"""

from bench.report.report_files import ReportError, write_html, write_report

__all__ = ["ReportError", "write_html", "write_report"]
