"""How costs grow with the fleet, and what that says of fleets that do not fit on this machine.

Runs ``refresh`` and ``cold`` over growing fleets and fits a power law, ms = a * nodes ** exponent, to the medians of
each measure: a straight line through their logarithms. ``apply`` is left out, as its RabbitMQ takes longer than all of
this; what a fleet costs its consumer is in ``commit``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from bench import cold, refresh
from bench.record import Case, Measure
from bench.scenario import Findings, ReportProgress, Scenario, Settings

SIZES_MIN: Final = 3
"""Two points lie on a line, whatever they are."""
SHARES: Final = (0.1, 0.3, 1.0, 3.0)
ESTIMATE_NODES: Final = 1_000_000
FITTED: Final = ("refresh", "columns", "nothing", "commit", "first view", "second reader")
BARE: Final = ("bare states", "bare heads", "bare keys", "bare blocks")
UNSHOWN: Final = "assumed, not shown: "
ASSUMED: Final = (
    "the same changes in each commit, however large the fleet",
    "memory for all states and a second copy of them, on the reader's side and in memcached",
    "no step between the largest fleet measured and the one estimated (caches, network, swapping)",
)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """y = factor * x ** exponent, fitted to ``count`` points. ``residual`` is the factor by which a point is off it,
    root mean square: 1.0 fits exactly.
    """

    factor: float
    exponent: float
    residual: float
    count: int
    centre: float
    spread: float

    @classmethod
    def fit(cls, xs: Sequence[float], ys: Sequence[float]) -> Self:
        """Least squares through the logarithms of at least two different x; all of them positive."""
        assert len(xs) == len(ys)
        assert len(set(xs)) >= 2, "one size says nothing of growth"
        x, y = np.log(np.asarray(xs, dtype=np.float64)), np.log(np.asarray(ys, dtype=np.float64))
        exponent, offset = np.polyfit(x, y, 1)
        off = y - (offset + exponent * x)
        residual = math.exp(math.sqrt(float(np.mean(off**2))))
        spread = float(np.sum((x - x.mean()) ** 2))
        return cls(math.exp(float(offset)), float(exponent), residual, len(xs), float(x.mean()), spread)

    def at(self, x: float) -> float:
        """The y that it says."""
        return float(self.factor * x**self.exponent)

    def within(self, x: float) -> float:
        """The factor, up and down, of two standard errors of ``at(x)``. It grows with the way from what was measured."""
        if self.count < SIZES_MIN:
            return math.inf
        error = math.log(self.residual) * math.sqrt(self.count / (self.count - 2))
        return math.exp(2 * error * math.sqrt(1 + 1 / self.count + (math.log(x) - self.centre) ** 2 / self.spread))


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Both scenarios at every size, then the law of each of their measures and what it says of a million nodes."""
    settings = replace(settings, nodes=sizes(settings.nodes))
    following, starting = refresh.run(settings, report_progress), cold.run(settings, report_progress)
    cases = [*following.cases, *starting.cases]
    fitted = laws(cases)
    across: dict[str, float] = {}
    for (design, measure), law in fitted.items():
        across[f"{design}: {measure}, exponent of nodes"] = law.exponent
        across[f"{design}: {measure}, residual"] = law.residual
    servers = {**following.servers, **starting.servers}
    return Findings([*cases, *_estimates(fitted, settings.nodes)], across, [], servers)


SCENARIO: Final = Scenario("scale", "growth of refresh and cold with the fleet, up to an estimate", run)


def sizes(nodes: tuple[int, ...]) -> tuple[int, ...]:
    """The fleets to measure: those given, or from a tenth of the largest to three times it if these are too few."""
    different = sorted(set(nodes))
    if len(different) >= SIZES_MIN:
        return tuple(different)
    return tuple(max(1, round(different[-1] * share)) for share in SHARES)


def laws(cases: Sequence[Case]) -> dict[tuple[str, str], PowerLaw]:
    """The law of each (design, measure) that has enough sizes."""
    points: dict[tuple[str, str], dict[int, float]] = {}
    for case in cases:
        for name, measure in case.measures.items():
            if name in FITTED or name in BARE:
                points.setdefault((case.design, name), {})[case.nodes] = measure.p50
    return {key: PowerLaw.fit(list(of), list(of.values())) for key, of in points.items() if len(of) >= SIZES_MIN}


def _estimates(fitted: dict[tuple[str, str], PowerLaw], nodes: Sequence[int]) -> list[Case]:
    """One case for each design: p50 is the estimate, min and max its two standard errors."""
    claims = [
        f"fitted to {len(nodes)} fleets from {nodes[0]:,} to {nodes[-1]:,} nodes, each shown to be right",
        *(f"{UNSHOWN}{assumption}" for assumption in ASSUMED),
    ]
    cases: list[Case] = []
    for design in dict.fromkeys(design for design, _ in fitted):
        own = {measure: law for (of, measure), law in fitted.items() if of == design and measure in FITTED}
        measures = {f"{measure}, estimate": _estimate(law) for measure, law in own.items()}
        cases.append(Case(f"{design}, estimate", ESTIMATE_NODES, {"estimated": 1}, measures, {}, claims))
    return cases


def _estimate(law: PowerLaw) -> Measure:
    ms, within = law.at(ESTIMATE_NODES), law.within(ESTIMATE_NODES)
    return Measure("ms", law.count, ms / within, ms, ms * within, ms * within)
