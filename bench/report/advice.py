"""The conclusions from the records, in words: the answer, when to choose which design, and which goals are met.

Every figure in a sentence is looked up. If no record has a figure, the sentence names the command that would measure
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.report.comparison import JOURNAL, NOISE, SNAPSHOT, Comparison, by_measure, headline, named
from bench.report.document import Section, Table
from bench.report.number_format import exact, figure, listed, quantity, times
from bench.report.records import TYPICAL_NODES, Records, command_for, command_of, typical

EVENT_EVERY_S: Final = 10.0
"""How often a node of a busy fleet changes, for counting consumers."""
GROWS_FROM: Final = 0.2
"""An exponent from which the report says that a cost grows: with 0.2, ten times the nodes cost 1.6 times as much."""


@dataclass(frozen=True, slots=True)
class Question:
    """A circumstance on which the choice of a design depends, and the measure that answers it."""

    when: str
    """The circumstance, as a row of a table."""
    advantage: str
    """The advantage of the better design, as a verb with its object."""
    scenarios: tuple[str, ...]
    measures: tuple[str, ...]
    """The measure that answers it: the first that a record has."""
    of_memcached: bool = False
    """Whether it is about memory or traffic of memcached, which a database does not use."""


FOLLOW: Final = Question(
    "schedulers refresh often, and a small part of the fleet changes in between",
    "refreshes schedulers faster",
    ("refresh", "scale"),
    ("refresh",),
)
START: Final = Question(
    "schedulers start often, or many start at once",
    "gives new schedulers their first view sooner",
    ("cold", "scale"),
    ("first view",),
)
WRITE: Final = Question(
    "changes arrive fast, and consumers lack processor time",
    "takes consumers less processor time",
    ("apply",),
    ("consumer, CPU",),
)
AMPLIFY: Final = Question(
    "the bandwidth of memcached is scarce",
    "writes fewer bytes",
    ("footprint",),
    ("write amplification", "written", "bytes written"),
    of_memcached=True,
)
STORED: Final = Question(
    "the memory of memcached is scarce",
    "needs less memory in memcached",
    ("footprint",),
    ("stored", "memory", "stored bytes"),
    of_memcached=True,
)
SHOWN: Final = Question(
    "a change must be visible soon",
    "shows changes sooner",
    ("propagation",),
    ("propagation", "change to view", "latency"),
)
HEAL: Final = Question(
    "memcached, or the database, may be restarted",
    "recovers sooner after its server has been restarted",
    ("recovery",),
    ("recovery", "flush", "memcached restart", "restart"),
)
QUESTIONS: Final = (FOLLOW, START, WRITE, AMPLIFY, STORED, SHOWN, HEAL)


def answered(records: Records, question: Question) -> Comparison | None:
    """Return the comparison that answers a question, or None if there is no record for it."""
    grouped = by_measure(records, *question.scenarios)
    for wanted in question.measures:
        candidates = [one for (_, _, measure), of in grouped.items() if measure == wanted for one in of]
        if candidates:
            found = headline(candidates)
            return replace(found, databases=()) if question.of_memcached else found
    return None


def _missing(question: Question) -> str:
    return f"was not measured (`{command_for(question.scenarios[0])}` measures it)"


# -- the answer -----------------------------------------------------------------------------------


def recommended(records: Records) -> tuple[str, dict[str, list[str]]]:
    """Return the design that is clearly better most often, and the advantages of each design by its label.

    The design is empty if two designs are clearly better equally often.
    """
    advantages: dict[str, list[str]] = {}
    for question in QUESTIONS:
        found = answered(records, question)
        if found and found.winner:
            advantages.setdefault(found.winner, []).append(question.advantage)
    counts = sorted(map(len, advantages.values()), reverse=True)
    draw = not counts or (len(counts) > 1 and counts[0] == counts[1])
    best = "" if draw else max(advantages, key=lambda label: len(advantages[label]))
    return best, advantages


def answer(records: Records) -> list[str]:
    """Return five points from which an operator can act."""
    return [_choose(records), _follow(records), _start(records), _consumers(records), _lose(records)]


def _choose(records: Records) -> str:
    best, advantages = recommended(records)
    compared = [found for question in QUESTIONS if (found := answered(records, question))]
    if not compared:
        return "No design can be recommended yet, because no record has figures of both designs: run `make bench`."
    order = sorted(advantages, key=lambda label: (label != best, -len(advantages[label])))
    clauses = (", while " if best else ", and ").join(f"{named(label)} {listed(advantages[label])}" for label in order)
    even = sum(not one.winner for one in compared)
    rest = (
        f"in {even} of {len(compared)} comparisons no design is ahead by {NOISE:g}× or more"
        if even
        else f"each of the {len(compared)} comparisons shows a difference of {NOISE:g}× or more"
    )
    if best:
        advice = (
            f"**Run {named(best)}**, unless the table below names your reason for another design: {clauses}, and {rest}"
        )
    else:
        reasons = f"{rest}, but {clauses}" if clauses else rest
        advice = (
            f"**Take either design of memcached**: {reasons}. Choose the journal if you need every change in order, "
            "and the snapshot otherwise"
        )
    return advice + _database(compared) + "."


def _database(compared: Sequence[Comparison]) -> str:
    """Return a clause on how the databases compare, if they were measured."""
    measured = [one for one in compared if one.databases]
    if not measured:
        return ""
    near = sum(any(database.design in one.near for database in one.databases) for one in measured)
    return f"; a database keeps up with the best design in {near} of the {len(measured)} comparisons that include one"


def _follow(records: Records) -> str:
    found = answered(records, FOLLOW)
    if found is None:
        return f"How fast a scheduler sees changes {_missing(FOLLOW)}."
    case = found.journal.case
    growth = [
        one.record.across[key]
        for one in records.estimates()
        if (key := f"{one.design}: refresh, exponent of nodes") in one.record.across
    ]
    grows = ""
    if growth:
        exponent = f"{max(growth):.2f}".replace("-0.00", "0.00")
        grows = (
            f", and larger fleets take longer (exponent {exponent} at most)"
            if max(growth) >= GROWS_FROM
            else f", and the size of the fleet hardly matters (exponent {exponent} at most)"
        )
    return (
        f"Let every scheduler keep one reader and refresh it before each decision: with {case.nodes:,} nodes, of which "
        f"{exact(case.settings['changed'])} have changed, that takes {found.in_words()}{grows}."
    )


def _start(records: Records) -> str:
    found = answered(records, START)
    if found is None:
        return f"How long a scheduler takes to start {_missing(START)}."
    verdict = (
        f"and {named(found.winner)} is faster by {found.lead_in_words()}"
        if found.winner
        else "and no design is clearly the fastest"
    )
    return (
        f"Restart schedulers whenever you like: a new scheduler has read all {found.journal.case.nodes:,} nodes after "
        f"{found.in_words()}, {verdict}."
    )


def _consumers(records: Records) -> str:
    rates = {
        one.case.design: one.p50("consumer")
        for one in typical(list(records.of_scenarios("apply")))
        if "consumer" in one.case.measures
    }
    if not rates:
        return f"How many consumers a fleet needs {_missing(WRITE)}."
    slowest, fastest = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    others = f"; with the fastest ({fastest}) it applies {figure(rates[fastest])}" if fastest != slowest else ""
    return (
        "Start one consumer process more than the fleet needs, so that one may fail: with the slowest design "
        f"({slowest}) a process applies {figure(rates[slowest])} events a second, which is enough for "
        f"{figure(rates[slowest] * EVENT_EVERY_S)} nodes that each change every {EVENT_EVERY_S:g} s{others}."
    )


def _lose(records: Records) -> str:
    found = answered(records, HEAL)
    restart = "A restart of memcached or of the database makes views stale for a while but never wrong"
    later = "You can change your mind later: consumers can write several designs at once, and each reader chooses one."
    if found is None:
        return f"{restart}; for how long {_missing(HEAL)}. {later}"
    return f"{restart}: a new view is complete and fresh again after {found.in_words()}. {later}"


# -- which design is better at what ---------------------------------------------------------------


def choice(records: Records) -> Section:
    """Return the table of circumstances, each with the design to take."""
    rows: list[Sequence[str]] = []
    commands: dict[str, None] = {}
    for question in QUESTIONS:
        found = answered(records, question)
        if found is None:
            rows.append([question.when, "–", f"not measured: `{command_for(question.scenarios[0])}`"])
            continue
        commands[found.command] = None
        figures = ", ".join(f"{label} {found.value_of(label)}" for label in found.values)
        even = (
            "either"
            if len(found.values) == 2
            else "any"
            if len(found.near) == len(found.values)
            else listed(found.near, "or")
        )
        take = f"**{found.winner}**" if found.winner else even
        rows.append([question.when, take, f"{found.measure}, {found.journal.case.nodes:,} nodes: {figures}"])
    rows += [
        [
            "a reader must see every change in order, or a view of exactly one position",
            "**journal**",
            "by design: a view is the fold of the events up to one position",
        ],
        [
            "memcached is small and may evict items",
            "**snapshot**",
            "by design: a lost item makes one node stale, but a lost segment of the journal makes its partition stale",
        ],
        [
            "there is no memcached, its memory is reserved, or states must survive a power failure",
            "**sql**",
            "by design: it needs a database only, and committed data stays",
        ],
    ]
    lead = (
        f"Designs whose medians differ by less than {NOISE:g}× count as even, because the machines drift by about that "
        "much between minutes."
    )
    table = Table(["if", "take", "because"], rows, words=True)
    return Section("When to choose which design", lead, tables=[table], commands=list(commands))


def wins(records: Records) -> Section:
    """Return tables of every measure of both designs, ordered by the advantage of the journal."""
    title = "Where the journal is better and worse"
    lead = (
        "All measures that one run took of both designs of memcached, and of databases if the run took them, "
        "for the size of fleet that this page quotes. Databases store on disk, the other designs in memory."
    )
    grouped = by_measure(records, *sorted({record.scenario for record in records.by_run.values()}, key=_rank))
    quoted = {key: headline(of) for key, of in grouped.items()}
    labels = list(dict.fromkeys((JOURNAL, SNAPSHOT, *(label for one in quoted.values() for label in one.values))))
    rows: dict[str, list[tuple[float, Sequence[str]]]] = {"better": [], "worse": [], "": []}
    shown: set[tuple[str, str]] = set()
    for (scenario, variant, measure), found in quoted.items():
        if (variant, measure) in shown and scenario == "scale":
            continue  # scale runs refresh and cold, whose own records are shown already
        shown.add((variant, measure))
        what = f"{scenario}: {measure}" + (f" ({variant})" if variant else "")
        figures = [found.value_of(label) if label in found.values else "–" for label in labels]
        outcome = "worse" if JOURNAL not in found.near else "better" if found.winner else ""
        cells = [what, f"{found.journal.case.nodes:,}", *figures, found.lead_in_words() if outcome else "–"]
        rows[outcome].append((found.lead, cells))
    if not any(rows.values()):
        return Section(title, lead, missing="No run measured both designs.", commands=["make bench"])
    tables = []
    for outcome, caption in (
        ("better", "The journal is better"),
        ("worse", "The journal is worse"),
        ("", f"No design is better by {NOISE:g}× or more"),
    ):
        ordered = [cells for _, cells in sorted(rows[outcome], key=lambda row: -row[0])]
        if ordered:
            tables.append(Table(["measure", "nodes", *labels, "better by"], ordered, caption))
    return Section(title, lead, tables=tables, commands=list(dict.fromkeys(one.command for one in quoted.values())))


def _rank(scenario: str) -> tuple[bool, str]:
    return scenario == "scale", scenario


def hybrid(records: Records) -> Section:
    """Describe a design that joins the advantages of both, with its cost as far as the records tell it."""
    title = "Cost of a hybrid design"
    text = [
        (
            "In both designs the head of a partition names the changes since a reader's last read, and the reader "
            "fetches just that. For a *new* reader the designs differ. The journal writes all nodes again "
            "from time to time (a checkpoint), so that a new reader need not fold every event since the beginning. The "
            "snapshot always has the state of every node, but keeps no history."
        ),
        (
            "A hybrid would be a snapshot whose partitions also keep their latest events: a new reader would fetch the "
            "items, a reader that needs every change would fetch the segments, and no checkpoints would be needed. "
            "Segments would be deleted by age, and a reader that fell behind would read the items."
        ),
    ]
    costs = [cost for cost in (_cost_of_both(records), _bytes_of_hybrid(records)) if cost]
    lead = "This design does not exist. The figures below are derived from measurements of the existing designs."
    if not costs:
        commands = [command_for("apply"), command_for("footprint")]
        return Section(title, lead, text, missing="No record tells its cost.", commands=commands)
    return Section(title, lead, [*text, *costs])


def _cost_of_both(records: Records) -> str:
    costs = {
        one.case.design: one
        for one in typical(list(records.of_scenarios("apply")))
        if "consumer, CPU" in one.case.measures
    }
    both = next((one for label, one in costs.items() if " and " in label), None)
    if both is None or JOURNAL not in costs or SNAPSHOT not in costs:
        return ""
    alone = max(costs[JOURNAL].p50("consumer, CPU"), costs[SNAPSHOT].p50("consumer, CPU"))
    spent = both.p50("consumer, CPU")
    return (
        f"Today a consumer can write both designs, which takes {quantity(spent, 'us')} of processor time for each "
        f"event: {times(spent / alone)} the time of the more expensive design alone "
        f"(`{command_of(both.run, both.record)}`). The hybrid would take less than that, because it writes no "
        "checkpoints."
    )


def _bytes_of_hybrid(records: Records) -> str:
    found = answered(records, AMPLIFY)
    if found is None or found.unit != "x":
        return ""
    journal, snapshot = found.values[JOURNAL], found.values[SNAPSHOT]
    log = found.journal.case.measures.get(f"{found.measure}, segments")
    hybrid = snapshot + (log.p50 if log else 1.0)
    return (
        f"For each byte of events the journal writes {figure(journal)} bytes and the snapshot {figure(snapshot)}. The "
        f"hybrid would write about {figure(hybrid)}: the items of the snapshot and the segments of the journal "
        f"(computed from `{found.command}`)."
    )


def goals(records: Records) -> Section:
    """Return the table of goals, each with the figure that was measured."""
    rows = []
    for run, record in records.by_run.items():
        for goal in [*(goal for case in record.cases for goal in case.goals), *record.goals]:
            bound = f"{'≤' if goal.sense == '<=' else '≥'} {quantity(goal.bound, goal.unit)}"
            rows.append(["met" if goal.met else "**not met**", goal.what, quantity(goal.got, goal.unit), bound, run])
    lead = f"Each goal names the size of fleet for which it was set, mostly {TYPICAL_NODES:,} nodes."
    if not rows:
        missing = "No record has the size of fleet that a goal names."
        return Section("Goals", lead, missing=missing, commands=[command_for("refresh")])
    return Section("Goals", lead, tables=[Table(["", "goal", "measured", "bound", "run"], rows)])
