"""Checks of signatures and tags.

They show which agents sign their events, which agents got orders without a valid signature, which allocations have a
valid tag, and which secrets are in use. So an operator knows whether the cell can get its next mode, or work without
its old secret.

The doctor asks all agents for their versions. The answers are events, and agents sign them as all other events, so no
record of earlier events is needed. An answer also says how many orders the agent accepted without a signature, and how
many it refused because of their signature.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET

from nodestate.auth import AllocationTags, MessageAuth
from nodestate.auth.message_auth import open_keyring
from nodestate.auth.signatures import KEY_ID_CHARS
from nodestate.broker import collect_census
from nodestate.config import Config
from nodestate.designs.connections import open_claims
from nodestate.errors import BadEventError, ConfigError, CorruptItemError, StoreError
from nodestate.findings.finding import Finding, found, well
from nodestate.model import Event, Heartbeat
from nodestate.ports import Resync, SystemClock
from nodestate.scheduling.order_ids import order_id_of
from nodestate.store import keys
from nodestate.store.refused_answers import REFUSED_ANSWERS
from nodestate.store.signed_values import value_auth
from nodestate.text import count_text, printable
from nodestate.view.view import View

SHOWN_COUNT: Final = 3
"""Most nodes that a finding names."""


class _Answers:
    """The agents' answers, sorted by their signatures."""

    def __init__(self, auth: MessageAuth | None) -> None:
        self.unsigned: set[str] = set()
        """Nodes whose answer has no signature."""
        self.refused: dict[str, str] = {}
        """By node, why the signature of its answer is refused."""
        self.key_ids: dict[str, str] = {}
        """By node, the id of the key that signed its answer."""
        self.unsigned_orders: dict[str, int] = {}
        """By node, the number of orders that its agent accepted without a signature."""
        self.refused_orders: dict[str, int] = {}
        """By node, the number of orders that its agent refused because of their signatures."""
        self._auth = auth
        """Checks the signatures; None if this process has no keys, or events are not signed."""

    def add(self, event: Event, body: bytes) -> None:
        """Sort one answer. If signatures are checked, counts of orders are taken from validly signed answers only."""
        if event.signature is UNSET:
            self.unsigned.add(event.node)
            if self._auth is not None:
                return
        else:
            try:
                if self._auth is not None:
                    self._auth.check(event.node, body, event.signature)
            except BadEventError as error:
                self.refused[event.node] = error.detail
                return
            self.key_ids[event.node] = event.signature[:KEY_ID_CHARS]
        if isinstance(event, Heartbeat):
            if event.unsigned_orders is not UNSET:
                self.unsigned_orders[event.node] = event.unsigned_orders
            if event.refused_orders is not UNSET:
                self.refused_orders[event.node] = event.refused_orders


def examine_signatures(config: Config, view: View) -> list[Finding]:
    """Examine whether the agents of the cell sign their events, and whether they get signed orders.

    Events are not examined if ``auth_events`` is off, and orders are not examined if ``auth_orders`` is off.
    """
    if config.auth_events == config.auth_orders == "off":
        return []
    findings: list[Finding] = []
    auth = None
    if config.auth_events != "off":
        try:
            keyring = open_keyring(config, "auth_events", "require")
            auth = MessageAuth("require", keyring, "event")
        except ConfigError as error:
            says = f"they are counted, but not checked: {error}"
            findings.append(found("event-signatures-unchecked", "signatures", says, "run doctor with the cell's keys"))
    answers = _Answers(auth)
    nodes = [one.name for one in view.nodes.records() if one.live]
    collect_census(config, Resync(), config.broker_timeout_s, awaited=nodes, on_event=answers.add)
    if config.auth_events != "off":
        findings += _event_findings(config, answers, nodes)
    if config.auth_orders != "off":
        findings += _order_findings(config, answers)
    return findings


def _event_findings(config: Config, answers: _Answers, nodes: list[str]) -> list[Finding]:
    answered = answers.unsigned | answers.refused.keys() | answers.key_ids.keys()
    silent = sum(name not in answered for name in nodes)
    more = f"; {count_text(silent, 'node')} did not answer" if silent else ""
    all_agents = count_text(len(answered), "agent")
    findings = []
    if answers.refused:
        node = min(answers.refused)
        says = f"{len(answers.refused):,} of {all_agents} sign wrongly, for example {answers.refused[node]}"
        advice = (
            "consumers refuse their events: write the keys of these nodes again with 'nodestate key node NODE'. If you "
            "revoked them, stop the agents; 'nodestate key rotate' comes before new keys of such a node"
        )
        findings.append(found("event-signatures-wrong", "signatures", says + more, advice))
    if answers.unsigned:
        shown = ", ".join(sorted(answers.unsigned)[:SHOWN_COUNT])
        says = f"{len(answers.unsigned):,} of {all_agents} do not sign their events, for example {shown}"
        advice = "give each its keys_file, written by 'nodestate key node NODE', and set its auth_events"
        code = "events-unsigned-required" if config.auth_events == "require" else "events-unsigned"
        findings.append(found(code, "signatures", says + more, advice))
    if not findings:
        used = Counter(answers.key_ids.values())
        keys = ", ".join(f"{key_id} ({count:,})" for key_id, count in used.most_common())
        says = (
            f"all {all_agents} that answered sign their events, with keys of {keys}" if used else ("no agent answered")
        )
        if silent:
            advice = "check that their agents run: an agent that does not sign may be among them"
            findings.append(found("agents-no-answer", "signatures", says + more, advice))
        else:
            findings.append(well("signatures", says))
    return findings


def _order_findings(config: Config, answers: _Answers) -> list[Finding]:
    """Return the findings about orders. In mode ``accept``, unsigned orders are expected and no fault."""
    findings = []
    if answers.unsigned_orders:
        says = f"{_counts_text(answers.unsigned_orders)} without signatures since they started"
        advice = (
            "give each scheduler its keys_file and auth_orders, then restart these agents: mode require would refuse "
            "the orders"
        )
        says = f"agents accepted {says}"
        is_expected = config.auth_orders == "accept"
        findings.append(well("orders", says) if is_expected else found("orders-unsigned", "orders", says, advice))
    if answers.refused_orders:
        says = f"{_counts_text(answers.refused_orders)} because of their signatures since they started"
        advice = (
            "give each scheduler the keys_file of the cell and auth_orders. If all have them, another program sends "
            "orders: find it by the connections and bindings that the broker shows, and take its login away"
        )
        findings.append(found("orders-refused-signature", "orders", f"agents refused {says}", advice))
    if not findings:
        findings.append(well("orders", "no agent that answered got an order without a valid signature"))
    return findings


def _counts_text(counts: Mapping[str, int]) -> str:
    """Return a text such as ``12 orders for 3 nodes, for example 10 for n1,``. ``counts``: by node, its orders."""
    node = max(counts, key=counts.__getitem__)
    orders = count_text(sum(counts.values()), "order")
    return f"{orders} for {count_text(len(counts), 'node')}, for example {counts[node]:,} for {node},"


def examine_refused_answers(config: Config) -> list[Finding]:
    """Return a finding if schedulers refused answers to orders not long ago, see ``RefusedAnswers``.

    Returns none if the store does not answer, as the doctor says so in another finding.
    """
    servers = open_claims(config, SystemClock(), value_auth(config, SystemClock()))
    key = keys.refused_answers(config.cell)
    try:
        refused = REFUSED_ANSWERS.find(key, servers[0].fetch([key]).get(key))
    except StoreError:
        return []
    finally:
        for server in servers:
            server.close()
    if refused is None:
        return []
    says = (
        f"schedulers refused {count_text(refused.count, 'answer')} to orders, the last within the past hour; scheduler "
        f"{printable(refused.scheduler)}: {printable(refused.reason)}"
    )
    advice = (
        "give the agent of that node its keys_file and auth_orders. If it has them, another program answers for it: "
        "find it by the connections that the broker shows, and take its login away"
    )
    return [found("answers-refused", "answers", says, advice)]


def examine_tags(config: Config, view: View) -> list[Finding]:
    """Examine whether all ordered allocations of a view have a valid tag. No findings if ``auth_orders`` is off."""
    if config.auth_orders == "off":
        return []
    try:
        tags = AllocationTags("require", open_keyring(config, "auth_orders", "require"))
    except ConfigError as error:
        return [found("tags-unchecked", "tags", f"they are not checked: {error}", "run doctor with the cell's keys")]
    untagged: dict[str, int] = {}
    by_ids: Counter[tuple[str, ...]] = Counter()
    for record in view.nodes.records():
        try:
            state = record.state() if record.live else {}
            allocations = msgspec.convert(state.get("allocations", {}), dict[str, dict[str, Any]])
        except (CorruptItemError, msgspec.ValidationError):  # a damaged value, which the doctor names elsewhere
            continue
        for instance, allocation in allocations.items():
            hints = allocation.get("hints")
            if not isinstance(hints, dict) or not order_id_of(hints):
                continue  # no scheduler ordered it, and it does not say so
            ids = tags.valid_ids(record.name, instance, allocation)
            by_ids[ids] += 1
            if not ids:
                untagged[record.name] = untagged.get(record.name, 0) + 1
    return _tag_findings(config, tags.ids_in_force, untagged, by_ids)


def _tag_findings(
    config: Config, in_force: tuple[str, ...], untagged: dict[str, int], by_ids: Counter[tuple[str, ...]]
) -> list[Finding]:
    of_all = f"{count_text(by_ids.total(), 'allocation')} that name an order"
    findings = []
    if untagged:
        most = sorted(untagged, key=lambda node: (-untagged[node], node))[:SHOWN_COUNT]
        nodes = ", ".join(f"{node} ({untagged[node]:,})" for node in most)
        says = f"{sum(untagged.values()):,} of {of_all} have no valid tag of a scheduler, for example on {nodes}"
        advice = (
            "if these instances are on these nodes, run 'nodestate retag --adopt', which says if one needs the "
            "name of its node; mode require believes none of them"
        )
        code = {"require": "tags-missing-required", "warn": "tags-missing"}.get(config.auth_orders)
        # Before these modes, no scheduler needs tags.
        findings.append(found(code, "tags", says, advice) if code is not None else well("tags", says))
    for key_id in in_force:
        lacking = sum(count for ids, count in by_ids.items() if ids and key_id not in ids)
        if lacking:
            says = f"{lacking:,} of {of_all} have no tag of secret {key_id}, only of {_others(in_force, key_id)}"
            advice = "run 'nodestate retag' before you revoke that secret"
            findings.append(found("tags-old-secret", "tags", says, advice))
    if not findings:
        says = f"all {of_all} have valid tags, of {', '.join(in_force)}" if by_ids else "no allocation names an order"
        findings.append(well("tags", says))
    return findings


def _others(in_force: tuple[str, ...], key_id: str) -> str:
    return " and ".join(one for one in in_force if one != key_id)
