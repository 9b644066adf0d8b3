"""The page of metrics: samples in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nodestate.histogram import Histogram
from nodestate.metrics.metric_table import METRICS, PREFIX, Part, Sample

SampleSource = Callable[[], Iterable[Sample]]
"""Returns the present samples of one part of a process."""

_FAMILIES: Final = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


class MetricsPage(Collector):
    """The metrics of a process.

    Args:
        sources: by part, the functions that return its samples. All metrics of these parts are shown, also those
            without a sample.
        with_process: add the memory, processor time and open files of the process.
    """

    def __init__(self, sources: Iterable[tuple[Part, SampleSource]], *, with_process: bool = True) -> None:
        self._sources = list(sources)
        """The parts and their samples."""
        self._registry = CollectorRegistry()
        """Holds this collector and that of the process."""
        self._registry.register(self)
        if with_process:
            ProcessCollector(registry=self._registry)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that a registry does not collect the metrics in order to know their names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics with their present samples."""
        parts = {part for part, _ in self._sources}
        by_name: dict[str, list[Sample]] = {metric.name: [] for metric in METRICS if metric.part in parts}
        for _, source in self._sources:
            for sample in source():
                by_name[sample.name].append(sample)
        for metric in METRICS:
            if metric.part in parts:
                family = _FAMILIES[metric.kind](PREFIX + metric.name, metric.help, labels=metric.labels)
                for sample in by_name[metric.name]:
                    _add(family, sample)
                yield family

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type. ``accept``: the header Accept of the request."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _add(family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily, sample: Sample) -> None:
    value = sample.value
    if not isinstance(family, HistogramMetricFamily):
        assert not isinstance(value, Histogram)
        family.add_metric(sample.labels, value)
        return
    assert isinstance(value, Histogram)
    total, counts = value.total, tuple(value.counts)
    names = [*map(floatToGoString, value.bounds), "+Inf"]
    family.add_metric(sample.labels, list(zip(names, accumulate(counts), strict=True)), total)
