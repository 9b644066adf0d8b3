"""Metrics for Prometheus: a page that is computed from the counters of a process when it is asked for.

A program with a scheduler of its own serves it like this::

    from nodestate.metrics import serve_metrics

    with serve_metrics("127.0.0.1:9464", scheduler=scheduler):
        ...

``metric_table`` has the names; docs/reference/metrics.md describes them.
"""

from nodestate.metrics.cell_metrics import cell_samples
from nodestate.metrics.collectors import agent_samples, consumer_samples, reader_samples, scheduler_samples
from nodestate.metrics.exposition import MetricsPage
from nodestate.metrics.node_page import ClaimedAmounts, node_page
from nodestate.metrics.server import MetricsServer, serve_metrics

__all__ = [
    "ClaimedAmounts",
    "MetricsPage",
    "MetricsServer",
    "agent_samples",
    "cell_samples",
    "consumer_samples",
    "node_page",
    "reader_samples",
    "scheduler_samples",
    "serve_metrics",
]
