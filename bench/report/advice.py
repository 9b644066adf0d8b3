"""What follows from the records, in words: who wins where, which design to take when, and the answer.

Every figure in a sentence is looked up. A figure that no record has becomes the command that would give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.report.comparison import JOURNAL, NOISE, SNAPSHOT, SQL, Pair, by_measure, headline
from bench.report.document import Section, Table
from bench.report.number_format import exact, figure, quantity, times
from bench.report.records import TYPICAL_NODES, Records, command_for, command_of, typical

EVENT_EVERY_S: Final = 10.0
"""How often a node of a busy fleet says something, for counting consumers."""
GROWS_FROM: Final = 0.2
"""The exponent from which a cost is said to grow: with 0.2 a fleet ten times as large costs 1.6 times as much."""


@dataclass(frozen=True, slots=True)
class Question:
    """Something that a choice depends on, and the measure that answers it: the first that a record has. ``of_memcached``:
    it is about what memcached has, of which a database takes nothing.
    """

    when: str
    scenarios: tuple[str, ...]
    measures: tuple[str, ...]
    of_memcached: bool = False


FOLLOW: Final = Question(
    "schedulers follow along and a small part of the fleet changes", ("refresh", "scale"), ("refresh",)
)
START: Final = Question("schedulers start often, or many at once", ("cold", "scale"), ("first view",))
WRITE: Final = Question("changes come fast and consumers are short of processor time", ("apply",), ("consumer, CPU",))
AMPLIFY: Final = Question(
    "bytes written to memcached are what is scarce",
    ("footprint",),
    ("write amplification", "written", "bytes written"),
    of_memcached=True,
)
STORED: Final = Question(
    "memory of memcached is what is scarce", ("footprint",), ("stored", "memory", "stored bytes"), of_memcached=True
)
SHOWN: Final = Question("a change must be seen soon", ("propagation",), ("propagation", "change to view", "latency"))
HEAL: Final = Question(
    "memcached, or the database, is expected to die",
    ("recovery",),
    ("recovery", "flush", "memcached restart", "restart"),
)
QUESTIONS: Final = (FOLLOW, START, WRITE, AMPLIFY, STORED, SHOWN, HEAL)


def answered(records: Records, question: Question) -> Pair | None:
    """The pair of figures that answers it; nothing where there is no record."""
    grouped = by_measure(records, *question.scenarios)
    for wanted in question.measures:
        candidates = [pair for (_, _, measure), of in grouped.items() if measure == wanted for pair in of]
        if candidates:
            found = headline(candidates)
            return replace(found, databases=()) if question.of_memcached else found
    return None


def _missing(question: Question) -> str:
    return f"not measured here, see `{command_for(question.scenarios[0])}`"


# -- the answer -----------------------------------------------------------------------------------


def recommended(records: Records) -> tuple[str, dict[str, int]]:
    """The design that answers more of the questions better, and how many each does. Nothing, if it is a draw."""
    found = [pair for question in QUESTIONS if (pair := answered(records, question))]
    labels = dict.fromkeys((JOURNAL, SNAPSHOT, *(label for pair in found for label in pair.values)))
    counts = {label: sum(pair.winner == label for pair in found) for label in labels}
    most = [label for label, count in counts.items() if count == max(counts.values())]
    return (most[0] if len(most) == 1 else ""), counts


def answer(records: Records) -> list[str]:
    """Five sentences that an operator can act on."""
    return [_choose(records), _follow(records), _start(records), _consumers(records), _lose(records)]


def _choose(records: Records) -> str:
    take, counts = recommended(records)
    found = [pair for question in QUESTIONS if (pair := answered(records, question))]
    if not found:
        return "No choice can be made yet: no record here has figures of both designs, so run `make bench`."
    first, *others = [f"{_named(label)} {{}}in {count}" for label, count in counts.items()]
    better = ", ".join([first.format(f"is better by {NOISE:g}× or more "), *(other.format("") for other in others)])
    tally = f"of the {len(found)} questions below that were measured, {better}"
    if not take:
        even = f"take the journal if you want every change in order, and the snapshot if not{_database(records)}"
        return f"**Take either**: {tally}, so {even}."
    other = SNAPSHOT if take == JOURNAL else JOURNAL
    return (
        f"**Run {_named(take)}** unless the table below names your reason for the {other}: {tally}{_database(records)}."
    )


def _named(label: str) -> str:
    return label if SQL in label else f"the {label}"


def _database(records: Records) -> str:
    """How the database compares, where it was measured."""
    found = [pair for question in QUESTIONS if (pair := answered(records, question)) and pair.databases]
    if not found:
        return ""
    near = sum(any(one.design in pair.near for one in pair.databases) for pair in found)
    return f"; a database keeps up with the best in {near} of the {len(found)} questions that it was measured in"


def _follow(records: Records) -> str:
    pair = answered(records, FOLLOW)
    if pair is None:
        return f"How fast a scheduler that follows along sees changes is {_missing(FOLLOW)}."
    case = pair.journal.case
    changed = exact(case.settings["changed"])
    growth = [
        one.record.across[key]
        for one in records.estimates()
        if (key := f"{one.design}: refresh, exponent of nodes") in one.record.across
    ]
    grows = ""
    if growth:
        step = max(growth)
        grows = ", and that grows with the fleet" if step >= GROWS_FROM else ", whatever the size of the fleet"
        grows += f" (exponent {step:.2f} at most)".replace("-0.00", "0.00")
    return (
        f"Let every scheduler keep its reader and refresh it for each decision: at {case.nodes:,} nodes it sees {changed} "
        f"changed ones after {pair.each()}{grows}."
    )


def _start(records: Records) -> str:
    pair = answered(records, START)
    if pair is None:
        return f"How long a scheduler takes to start is {_missing(START)}."
    verdict = (
        f"{pair.by()} sooner with {_named(pair.winner)}"
        if pair.winner
        else "no difference that stands out of the noise"
    )
    return (
        f"Restart schedulers whenever you like: a new one has all {pair.journal.case.nodes:,} nodes after "
        f"{pair.each()}, {verdict}."
    )


def _consumers(records: Records) -> str:
    rates = {
        one.case.design: one.p50("consumer")
        for one in typical(list(records.found("apply")))
        if "consumer" in one.case.measures
    }
    if not rates:
        return f"How many consumers to run is {_missing(WRITE)}."
    slowest, fastest = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    best = f", and {figure(rates[fastest])} with the fastest ({fastest})" if fastest != slowest else ""
    return (
        f"Start one consumer process more than the fleet's changes need, so that one may die: one takes "
        f"{figure(rates[slowest])} events a second with the slowest way of writing ({slowest}){best}, so at worst the "
        f"changes of {figure(rates[slowest] * EVENT_EVERY_S)} nodes that change every {EVENT_EVERY_S:g} s."
    )


def _lose(records: Records) -> str:
    pair = answered(records, HEAL)
    rest = (
        "you can change your mind later: several designs can be written at once, and each reader names the one it reads"
    )
    if pair is None:
        return f"Losing memcached costs freshness and never truth (how long is {_missing(HEAL)}), and {rest}."
    return (
        f"Losing memcached, or a database for a while, costs freshness and never truth (a new view is whole after "
        f"{pair.each()}), and {rest}."
    )


# -- who wins where -------------------------------------------------------------------------------


def choice(records: Records) -> Section:
    """One row for each reason to take a design."""
    rows: list[Sequence[str]] = []
    for question in QUESTIONS:
        pair = answered(records, question)
        if pair is None:
            rows.append([question.when, "–", f"not measured here: `{command_for(question.scenarios[0])}`"])
            continue
        figures = ", ".join(f"{label} {pair.of(label)}" for label in pair.values)
        why = f"{pair.measure}: {figures}, at {pair.journal.case.nodes:,} nodes"
        even = (
            "either"
            if len(pair.values) == 2
            else "any"
            if len(pair.near) == len(pair.values)
            else " or ".join(pair.near)
        )
        take = f"**{pair.winner}**" if pair.winner else even
        rows.append([question.when, take, f"{why} (`{pair.command}`)"])
    rows += [
        [
            "somebody must see every change in order, or a view of exactly one position",
            "**journal**",
            "by contract: a view is the fold of a prefix of events",
        ],
        [
            "memcached is small and may evict",
            "**snapshot**",
            "by contract: a lost item costs the freshness of one node, a lost segment that of its partition",
        ],
        [
            "there is no memcached, its memory is for others, or states must outlive a power failure",
            "**sql**",
            "by contract: a database and nothing else, where what was committed stays",
        ],
    ]
    lead = f"Medians nearer than {NOISE:g}× count as even: this is how far machines drift between minutes."
    return Section("When to take which", lead, tables=[Table(["when", "take", "because"], rows, words=True)])


def wins(records: Records) -> Section:
    """Every measure of both designs, in the order of the journal's advantage."""
    title, lead = (
        "Where the journal wins and loses",
        (
            "All measures that one run took of both designs of memcached, at the size that figures are quoted for; with those "
            "of databases, where the run took them. What a database stores lies on disk."
        ),
    )
    grouped = by_measure(records, *sorted({record.scenario for record in records.by_run.values()}, key=_rank))
    quoted = {key: headline(of) for key, of in grouped.items()}
    labels = list(dict.fromkeys((JOURNAL, SNAPSHOT, *(label for pair in quoted.values() for label in pair.values))))
    rows: dict[str, list[tuple[float, Sequence[str]]]] = {"wins": [], "loses": [], "": []}
    said: set[tuple[str, str]] = set()
    for (scenario, variant, measure), pair in quoted.items():
        if (variant, measure) in said and scenario == "scale":
            continue  # it ran refresh and cold, which have spoken
        said.add((variant, measure))
        what = f"{scenario}: {measure}" + (f" ({variant})" if variant else "")
        figures = [pair.of(label) if label in pair.values else "–" for label in labels]
        outcome = "loses" if JOURNAL not in pair.near else "wins" if pair.winner else ""
        cells = [what, f"{pair.journal.case.nodes:,}", *figures, pair.by() if outcome else "–"]
        rows[outcome].append((pair.lead, cells))
    if not any(rows.values()):
        return Section(title, lead, missing="No run here measured both designs.", commands=["make bench"])
    tables = []
    for outcome, caption in (
        ("wins", "The journal wins"),
        ("loses", "The journal loses"),
        ("", "Even, within the noise"),
    ):
        ordered = [cells for _, cells in sorted(rows[outcome], key=lambda row: -row[0])]
        if ordered:
            tables.append(Table(["measure", "nodes", *labels, "better by"], ordered, caption))
    commands = list(dict.fromkeys(pair.command for pair in quoted.values()))
    return Section(title, lead, tables=tables, commands=commands)


def _rank(scenario: str) -> tuple[bool, str]:
    return scenario == "scale", scenario


def hybrid(records: Records) -> Section:
    """What a design that takes the better half of each would be, and what the records say of its price."""
    text = [
        (
            "In both designs a partition's head tells a reader that follows what changed, and it fetches that alone. They "
            "differ in what a *new* reader finds, and in what that costs. The journal has to write all nodes "
            "again and again (checkpoints) so that this does not take longer every day; the snapshot has every node's state "
            "at hand, and forgets how it came there."
        ),
        (
            "So the hybrid is a snapshot whose partitions also keep their last events: state items for whoever starts, "
            "segments for whoever needs every change, and no checkpoints, as the items are one. Such a journal would be trimmed "
            "by age alone, and whoever falls behind it reads items."
        ),
    ]
    prices = [price for price in (_price_now(records), _price_hybrid(records)) if price]
    lead = "Not built: what follows from the figures, and what can be had today by writing both designs."
    if not prices:
        return Section(
            "What the hybrid would be",
            lead,
            text,
            missing="No record here tells its price.",
            commands=[command_for("apply"), command_for("footprint")],
        )
    return Section("What the hybrid would be", lead, [*text, *prices])


def _price_now(records: Records) -> str:
    costs = {
        one.case.design: one for one in typical(list(records.found("apply"))) if "consumer, CPU" in one.case.measures
    }
    both = next((one for label, one in costs.items() if " and " in label), None)
    if both is None or JOURNAL not in costs or SNAPSHOT not in costs:
        return ""
    alone = max(costs[JOURNAL].p50("consumer, CPU"), costs[SNAPSHOT].p50("consumer, CPU"))
    spent = both.p50("consumer, CPU")
    return (
        f"Writing both today costs a consumer {quantity(spent, 'us')} an event, {times(spent / alone)} what the dearer one "
        f"costs alone (`{command_of(both.run, both.record)}`): the hybrid costs less than that, as it writes no checkpoints."
    )


def _price_hybrid(records: Records) -> str:
    pair = answered(records, AMPLIFY)
    if pair is None or pair.unit != "x":
        return ""
    journal, snapshot = pair.values[JOURNAL], pair.values[SNAPSHOT]
    log = pair.journal.case.measures.get(f"{pair.measure}, segments")
    hybrid = snapshot + (log.p50 if log else 1.0)
    return (
        f"For each byte of events the journal writes {figure(journal)} and the snapshot {figure(snapshot)}; the hybrid would "
        f"write about {figure(hybrid)}: the snapshot's items and the journal's segments (computed, not measured; `{pair.command}`)."
    )


def goals(records: Records) -> Section:
    """What was wanted, beside what was got."""
    rows = []
    for run, record in records.by_run.items():
        for goal in [*(goal for case in record.cases for goal in case.goals), *record.goals]:
            wanted = f"{'≤' if goal.sense == '<=' else '≥'} {quantity(goal.bound, goal.unit)}"
            rows.append(["met" if goal.met else "**not met**", goal.what, quantity(goal.got, goal.unit), wanted, run])
    lead = f"Figures that were wanted of the size that they were wanted for, {TYPICAL_NODES:,} nodes mostly."
    if not rows:
        return Section(
            "Goals", lead, missing="No record here has the size that a goal names.", commands=[command_for("refresh")]
        )
    return Section("Goals", lead, tables=[Table(["", "goal", "got", "wanted", "run"], rows)])
