"""Measures how costs grow with the fleet, and estimates the costs of fleets that are too large for this machine.

Runs ``refresh`` and ``cold`` with growing fleets and fits a power law, ms = a * nodes ** exponent, to the medians of
each measure: a straight line through their logarithms. ``apply`` is left out because its RabbitMQ takes longer than
everything else; the measure ``commit`` tells how much time a consumer takes.
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
"""Least number of sizes: any two points lie on a line."""
SHARES: Final = (0.1, 0.3, 1.0, 3.0)
ESTIMATE_NODES: Final = 1_000_000
FITTED: Final = ("refresh", "columns", "nothing", "commit", "first view", "second reader")
BARE: Final = ("bare states", "bare heads", "bare keys", "bare blocks")
UNSHOWN: Final = "assumed without proof: "
ASSUMED: Final = (
    "the same changes in each commit, however large the fleet",
    "enough memory for all states and a second copy of them, for the reader and in memcached",
    "no sudden change of costs beyond the largest measured fleet (caches, network, swapping)",
)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """The law y = factor * x ** exponent, fitted to points."""

    factor: float
    exponent: float
    residual: float
    """The factor by which a point lies off the law, as root mean square; 1.0 is an exact fit."""
    count: int
    """Number of points."""
    centre: float
    """Mean of the logarithms of x."""
    spread: float
    """Sum of the squared differences of these logarithms from their mean."""

    @classmethod
    def fit(cls, xs: Sequence[float], ys: Sequence[float]) -> Self:
        """Fit a law by least squares of logarithms. There must be two different x; all values must be positive."""
        assert len(xs) == len(ys)
        assert len(set(xs)) >= 2, "a law needs two different sizes"
        x, y = np.log(np.asarray(xs, dtype=np.float64)), np.log(np.asarray(ys, dtype=np.float64))
        exponent, offset = np.polyfit(x, y, 1)
        off = y - (offset + exponent * x)
        residual = math.exp(math.sqrt(float(np.mean(off**2))))
        spread = float(np.sum((x - x.mean()) ** 2))
        return cls(math.exp(float(offset)), float(exponent), residual, len(xs), float(x.mean()), spread)

    def at(self, x: float) -> float:
        """Return the value of y that the law predicts."""
        return float(self.factor * x**self.exponent)

    def within(self, x: float) -> float:
        """Return two standard errors of ``at(x)``, as a factor.

        The factor grows with the distance of x from the measured values.
        """
        if self.count < SIZES_MIN:
            return math.inf
        error = math.log(self.residual) * math.sqrt(self.count / (self.count - 2))
        return math.exp(2 * error * math.sqrt(1 + 1 / self.count + (math.log(x) - self.centre) ** 2 / self.spread))


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Run both scenarios at every size, fit a law to each measure, and estimate the measures for a million nodes."""
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


SCENARIO: Final = Scenario("scale", "growth of refresh and cold with the fleet, and an estimate for a larger one", run)


def sizes(nodes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes to measure.

    If fewer than three different sizes are given, return sizes from a tenth of the largest to three times the largest.
    """
    different = sorted(set(nodes))
    if len(different) >= SIZES_MIN:
        return tuple(different)
    return tuple(max(1, round(different[-1] * share)) for share in SHARES)


def laws(cases: Sequence[Case]) -> dict[tuple[str, str], PowerLaw]:
    """Return the law of each design and measure that has enough sizes."""
    points: dict[tuple[str, str], dict[int, float]] = {}
    for case in cases:
        for name, measure in case.measures.items():
            if name in FITTED or name in BARE:
                points.setdefault((case.design, name), {})[case.nodes] = measure.p50
    return {key: PowerLaw.fit(list(of), list(of.values())) for key, of in points.items() if len(of) >= SIZES_MIN}


def _estimates(fitted: dict[tuple[str, str], PowerLaw], nodes: Sequence[int]) -> list[Case]:
    """Return a case for each design, in which p50 is the estimate, and min and max are two standard errors away."""
    claims = [
        f"fitted to {len(nodes)} fleets from {nodes[0]:,} to {nodes[-1]:,} nodes, whose results were proved right",
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
