"""Checks of one design: the heads of its partitions, their owners, and what its view lacks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.control import Control, author_text
from nodestate.designs.control_store import Copy, newest
from nodestate.designs.inspection import NOTHING_STORED, DesignStatus, HeadStatus, out_of_sync
from nodestate.designs.stored_design import StoredDesign
from nodestate.findings.finding import Finding, found, well
from nodestate.store import keys
from nodestate.text import count_text, range_text, span_text


def examine_copies(cell: str, copies: Sequence[Copy]) -> Iterator[Finding]:
    """Name the stores whose copy of the control record is invalid."""
    for copy in copies:
        if copy.is_refused:
            says = f"its copy of the control record is refused: {copy.invalid}"
            advice = (
                "consumers that know the record replace the copy within seconds, and go on with the record that they "
                "know. If none does: after a look at 'nodestate design status', sign the record by 'nodestate design "
                f"sign', or with --force the refused one; if no operator wrote it, delete the key {keys.control(cell)} "
                "there first, and find the program that did"
            )
            yield found("control-record-refused", f"store {copy.store.name}", says, advice)
        elif copy.may_be_right:
            says = f"this process does not follow its copy of the control record: {copy.invalid}"
            advice = (
                "upgrade nodestate, or set the clock of this machine. If no operator wrote the record, delete the key "
                f"{keys.control(cell)} there: consumers write the record that they know again; or repeat the last "
                "command 'nodestate design' with --force"
            )
            yield found("control-record-not-followed", f"store {copy.store.name}", says, advice)
        elif copy.invalid:
            says = f"its copy of the control record counts as missing: {copy.invalid}"
            advice = (
                "consumers that know the record replace the copy within seconds. If none does, delete the key "
                f"{keys.control(cell)} there"
            )
            yield found("control-record-damaged", f"store {copy.store.name}", says, advice)


def examine_record(config: Config, copies: Sequence[Copy]) -> Iterator[Finding]:
    """Examine the newest control record and its signature, and name the stores that have an older one."""
    control = newest(copies)
    if control is None:
        if config.auth_control == "require":
            says = "no store has a signed record, so consumers that start wait for one"
            yield found("control-record-missing", "control record", says, "make or sign it by 'nodestate design sign'")
        return
    says = f"version {control.version}, {author_text(control)}"
    if control.signature or config.auth_control == "off":
        yield well("control record", says)
    else:
        yield found(
            "control-record-unsigned",
            "control record",
            f"{says}: mode require would refuse it",
            "nodestate design sign",
        )
    for copy in copies:
        if copy.control is not None and copy.control.version < control.version:
            says = f"has version {copy.control.version} of the control record, and another store has {control.version}"
            advice = (
                "run this command again in some seconds: consumers replace older copies. If the version stays, a "
                "program puts an old record back, or no consumer can write there"
            )
            yield found("control-record-old-copy", f"store {copy.store.name}", says, advice)


def examine_replicas(first: DesignStatus, other: DesignStatus) -> Iterator[Finding]:
    """Say in how many partitions both replicas of a design are in sync. Partitions without any head are left out."""
    known = {
        number for number, heads in enumerate(zip(first.heads, other.heads, strict=True)) if any(map(_is_head, heads))
    }
    lacking = {number: why for number, why in out_of_sync(first, other).items() if number in known}
    if not known:
        return
    partitions = count_text(len(first.heads), "partition")
    if not lacking:
        yield well("replicas", f"{first.name} and {other.name} are in sync in {len(known)} of {partitions}")
        return
    number, why = next(iter(lacking.items()))
    says = f"{len(lacking)} of {partitions} of {first.name} have one replica in sync, for example {number}: {why}"
    heads = (status.heads[number] for status in (first, other))
    if any(isinstance(head, str) and head != NOTHING_STORED for head in heads):
        advice = (
            "readers and consumers go on with the other server. Start this one again: consumers fill it within "
            "seconds. Stop no other server before this line is gone"
        )
    else:
        advice = (
            "consumers fill the replica within seconds: stop no server before this line is gone. If it stays, look in "
            "the log of 'nodestate consume'"
        )
    yield found("replica-out-of-sync", "replicas", says, advice)


def _is_head(head: HeadStatus | str) -> bool:
    return isinstance(head, HeadStatus)


def examine_single_replica(config: Config, control: Control) -> Iterator[Finding]:
    """Warn if the design that readers read has one replica, and the settings ask for two."""
    read = control.reads
    other = StoredDesign(DESIGNS[read.design].partner, read.partitions)
    if config.replicas_count > 1 and other.design and other not in control.writes:
        yield found(
            "replica-missing",
            "replicas",
            f"each partition of {control.names[read]} is on one of {len(config.store_servers)} servers only: while "
            "that server is away, its nodes are stale",
            f"'nodestate design prepare {other.design}' keeps a second replica, which needs as much memory again; if "
            "one is enough, set NODESTATE_REPLICAS=1",
        )


def examine_design(config: Config, status: DesignStatus, partner: DesignStatus | None = None) -> Iterator[Finding]:
    """Examine one design as the inspection found it. ``partner``: its other replica; None if it is not written."""
    about = status.name
    heads = {number: head for number, head in enumerate(status.heads) if isinstance(head, HeadStatus)}
    absent = {number: why for number, why in enumerate(status.heads) if isinstance(why, str)}
    if partner is not None:
        absent = {number: why for number, why in absent.items() if isinstance(partner.heads[number], str)}
    if absent:
        number, why = next(iter(absent.items()))
        of_all = f"{len(absent)} of {count_text(len(status.heads), 'partition')}"
        says = f"{of_all} without a head, for example {number}: {why}"
        begin = "start 'nodestate consume', with the same --cell and --store"
        yield found(
            "partition-no-head", about, says, begin if why == NOTHING_STORED else "see the lines about the store"
        )
    if heads:
        yield from _examine_owners(config, about, heads)
    view = status.view
    lost = {p.partition: p.lost for p in view.partitions if p.lost and p.partition in heads}
    if lost:
        number, why = next(iter(lost.items()))
        partitions = count_text(len(lost), "partition has", "partitions have")
        says = f"{partitions} lost a part of the stored state, for example {number}: {why}"
        yield found(
            "partition-state-lost",
            about,
            says,
            "their owners were asked to write it again; run this command again in some seconds",
        )
    if incomplete := sorted(name for name in view.incomplete if " " not in name):
        nodes = count_text(len(incomplete), "node has", "nodes have")
        says = f"{nodes} a newer state than the stored one, for example {', '.join(incomplete[:3])}"
        yield found(
            "nodes-incomplete",
            about,
            says,
            "their agents were asked for a report; check that they run, or ask again with 'nodestate resync --node "
            "NAME'",
        )


def _examine_owners(config: Config, about: str, heads: dict[int, HeadStatus]) -> Iterator[Finding]:
    members = Counter(head.member for head in heads.values())
    oldest = max(heads, key=lambda number: heads[number].age_s)
    behind = max(heads, key=lambda number: heads[number].behind_s)
    terms = [head.term for head in heads.values()]
    says = (
        f"{count_text(len(heads), 'partition')}, owned by "
        f"{', '.join(f'{name} ({count})' for name, count in members.most_common(4))}; "
        f"term {range_text(terms)}; renewed at most {heads[oldest].age_s:.0f} s ago"
    )
    late_s = 3 * config.renew_s + 2  # the store's clock has whole seconds
    if heads[oldest].age_s > late_s:
        count = sum(1 for head in heads.values() if head.age_s > late_s)
        says = (
            f"{count_text(count, 'partition has', 'partitions have')} no living owner; "
            f"{heads[oldest].member} renewed partition {oldest} {heads[oldest].age_s:.0f} s ago, "
            f"but an owner does so every {config.renew_s:g} s"
        )
        yield found(
            "partition-no-owner", about, says, "start 'nodestate consume', or look in its log for errors of the store"
        )
    else:
        yield well(about, says)
    if heads[behind].behind_s > late_s:
        since = (
            f"for {span_text(heads[behind].behind_s)}" if math.isfinite(heads[behind].behind_s) else "since it started"
        )
        says = f"the owner of partition {behind} has not been caught up with its queue {since}"
        yield found("partition-behind", about, says, "if this persists, start more members of 'nodestate consume'")
    if refused := {number: head.refused for number, head in heads.items() if head.refused}:
        says = (
            f"{count_text(sum(refused.values()), 'refused message waits', 'refused messages wait')}, for example in "
            f"partition {next(iter(refused))}: the dead-letter queue takes no message; a partition with many refused "
            "messages falls behind"
        )
        advice = (
            f"if this persists, the queue nodestate.{config.cell}.dead is full: read its messages, then purge it, or "
            "raise the limit of its policy"
        )
        yield found("dead-queue-full", about, says, advice)
    if doubtful := [number for number, head in heads.items() if not head.complete]:
        says = f"{count_text(len(doubtful), 'partition')} may not know all nodes yet, for example {doubtful[:4]}"
        advice = (
            f"their owners began without the whole stored state, and wait for reports, at most {config.settle_s:g} s; "
            "no action is needed"
        )
        yield found("partition-incomplete", about, says, advice)
