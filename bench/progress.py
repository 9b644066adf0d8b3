"""The progress bar of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.scenario import ReportProgress


@contextmanager
def show_progress() -> Iterator[ReportProgress]:
    """Show a progress bar on stderr that is drawn only at each report; a thread that draws would disturb the timing."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)

        def report_progress(what: str, done: float) -> None:
            progress.update(task, description=what, completed=min(done, 1.0), refresh=True)

        yield report_progress
