"""The table of all findings: their codes, severities, meanings and remedies. Codes are frozen."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

DOCS_PAGE: Final = "docs/reference/findings.md"
"""The page that describes each finding under a heading of its code."""


class FindingKind(NamedTuple):
    """One kind of finding."""

    code: str
    """Its code, for programs."""
    severity: Literal["warn", "fail"]
    """``fail`` if this part of the cell does not work, ``warn`` if it needs attention."""
    meaning: str
    """One sentence about the fault. A finding says the same with its figures."""
    remedy: str
    """What to do. A finding says the same with its names."""


FINDINGS: Final[tuple[FindingKind, ...]] = (
    FindingKind(
        "broker-unreachable",
        "fail",
        "The broker does not answer, or refuses the login.",
        "Check that it is running, that this is its address, and that it accepts this user and password.",
    ),
    FindingKind(
        "broker-alarm",
        "fail",
        "The broker is short of memory or disk and takes no messages, so publishers block.",
        "Free memory or disk, or raise the broker's limits.",
    ),
    FindingKind(
        "broker-no-majority",
        "fail",
        "Half of the nodes of a RabbitMQ cluster or more do not answer, so quorum queues stand still.",
        "Start a node again.",
    ),
    FindingKind(
        "broker-node-away",
        "warn",
        "A node of a RabbitMQ cluster does not answer.",
        "Start it again, and stop no other node before.",
    ),
    FindingKind(
        "no-failover",
        "warn",
        "The transport has no single active consumer, so no consumer takes over from another one.",
        "Use RabbitMQ.",
    ),
    FindingKind(
        "exchange-missing",
        "fail",
        "An exchange of the cell did not exist, so messages were lost or came back.",
        "Check that consumers and agents run, and that no program deletes exchanges.",
    ),
    FindingKind(
        "queue-missing",
        "fail",
        "The queue of a partition does not exist, so its events come back.",
        "Start 'nodestate consume', which declares it.",
    ),
    FindingKind(
        "queue-no-consumer",
        "fail",
        "The queue of a partition has no consumer, so its nodes become stale.",
        "Start 'nodestate consume'.",
    ),
    FindingKind(
        "queue-backlog",
        "warn",
        "More events wait in the queues than consumers take at once.",
        "If this persists, start more members of 'nodestate consume'.",
    ),
    FindingKind(
        "queue-no-standby",
        "warn",
        "A queue has one consumer, and no other one takes over if it dies.",
        "Start another member of 'nodestate consume'.",
    ),
    FindingKind(
        "dead-letters",
        "warn",
        "Messages were refused for good.",
        "Correct the program that sends them, then purge the queue.",
    ),
    FindingKind(
        "dead-letters-clock",
        "warn",
        "Events were refused because the clock of their node is wrong, so the node is stale.",
        "Correct the time of the node (NTP), and restart its agent.",
    ),
    FindingKind(
        "dead-queue-missing",
        "warn",
        "The dead-letter queue does not exist, so refused messages stay in the queues of their partitions.",
        "Check that consumers run: they declare it again.",
    ),
    FindingKind(
        "dead-queue-full",
        "warn",
        "Refused messages wait because the dead-letter queue takes none.",
        "Read its messages, then purge it, or raise the limit of its policy.",
    ),
    FindingKind(
        "dead-queue-classic",
        "warn",
        "The dead-letter queue is lost with its machine, unlike the other queues.",
        "Read its letters, then delete it: it is declared again.",
    ),
    FindingKind(
        "dead-queue-unbounded",
        "warn",
        "The dead-letter queue has no limit, so refused messages can fill the broker's disk.",
        "Read its letters, then delete it, or set a policy.",
    ),
    FindingKind(
        "layout-unnamed-consumed",
        "warn",
        "Consumers read queues of a number of partitions that the control record does not name.",
        "Start these consumers without --design.",
    ),
    FindingKind(
        "layout-unnamed-messages",
        "warn",
        "Messages wait in queues that no consumer reads.",
        "Set the same number of partitions everywhere, ask all nodes for reports, and delete the queues.",
    ),
    FindingKind(
        "layout-retired-queues",
        "warn",
        "A design was retired, but its queues may still exist and fill up.",
        "Run 'nodestate design retire' again: it deletes them.",
    ),
    FindingKind(
        "control-record-missing",
        "fail",
        "No store has a signed control record, so consumers that start wait for one.",
        "Make or sign it by 'nodestate design sign'.",
    ),
    FindingKind(
        "control-record-refused",
        "fail",
        "A stored copy of the control record has a wrong signature.",
        "Sign the record by 'nodestate design sign', and find the program that wrote the copy.",
    ),
    FindingKind(
        "control-record-not-followed",
        "fail",
        "A stored copy of the control record is of a later version of nodestate, or of a wrong time.",
        "Upgrade nodestate, or set the clock of the machine.",
    ),
    FindingKind(
        "control-record-damaged",
        "fail",
        "A stored copy of the control record is damaged.",
        "If no consumer replaces it, delete its key.",
    ),
    FindingKind(
        "control-record-unsigned",
        "warn",
        "The control record is not signed.",
        "Run 'nodestate design sign'.",
    ),
    FindingKind(
        "control-record-old-copy",
        "warn",
        "A store has an older copy of the control record.",
        "If it stays, a program puts an old record back, or no consumer can write there.",
    ),
    FindingKind(
        "partition-no-head",
        "fail",
        "A partition has no stored state.",
        "Start 'nodestate consume', with the same --cell and --store.",
    ),
    FindingKind(
        "partition-no-owner",
        "fail",
        "The owner of a partition has stopped renewing it.",
        "Start 'nodestate consume', or look in its log for errors of the store.",
    ),
    FindingKind(
        "partition-behind",
        "warn",
        "The owner of a partition is behind with its queue.",
        "If this persists, start more members of 'nodestate consume'.",
    ),
    FindingKind(
        "partition-incomplete",
        "warn",
        "A partition of a design may lack nodes: its owner waits for their reports.",
        "None is needed; if it stays, check that the agents run.",
    ),
    FindingKind(
        "partition-state-lost",
        "warn",
        "A store lost a part of a partition.",
        "None is needed: its owner writes it again.",
    ),
    FindingKind(
        "nodes-incomplete",
        "warn",
        "A node has a newer state than the stored one.",
        "Check that its agent runs, or ask for a report with 'nodestate resync'.",
    ),
    FindingKind(
        "replica-out-of-sync",
        "warn",
        "A partition has one replica in sync instead of two.",
        "Stop no other server before it has two.",
    ),
    FindingKind(
        "replica-missing",
        "warn",
        "The settings ask for two replicas, and the cell writes one.",
        "Run 'nodestate design prepare' for the other replica.",
    ),
    FindingKind(
        "store-unreachable",
        "fail",
        "A store does not answer, or refuses the login.",
        "Check that it is running, that this is its address, and that it accepts this user and password.",
    ),
    FindingKind(
        "store-too-old",
        "fail",
        "A memcached has no meta commands.",
        "Use memcached 1.6 or newer.",
    ),
    FindingKind(
        "store-restarted",
        "warn",
        "A store started a short time ago and has lost its content.",
        "If the restart was not planned, look for its cause in memcached's log.",
    ),
    FindingKind(
        "store-not-writable",
        "fail",
        "A store can be read but not written, because it has no memory left.",
        "Raise -m, or start it without -M.",
    ),
    FindingKind(
        "store-full-refuses",
        "fail",
        "A memcached with -M is almost full; it then refuses writes.",
        "Raise -m, or start it without -M.",
    ),
    FindingKind(
        "store-no-evict",
        "warn",
        "A memcached refuses writes when it is full, instead of evicting items.",
        "Check that -m is ample.",
    ),
    FindingKind(
        "store-full",
        "warn",
        "A memcached is almost full; it then evicts items.",
        "Raise -m.",
    ),
    FindingKind(
        "store-evictions",
        "warn",
        "A memcached evicted items, so views are older until consumers write them again.",
        "Raise -m.",
    ),
    FindingKind(
        "store-out-of-memory",
        "warn",
        "A memcached refused writes for lack of memory.",
        "Raise -m.",
    ),
    FindingKind(
        "store-item-limit",
        "warn",
        "The item limit of a memcached is smaller than the largest state of a node.",
        "Raise -I to 1m, or keep states small.",
    ),
    FindingKind(
        "store-connections-refused",
        "warn",
        "A memcached refused connections.",
        "Raise -c.",
    ),
    FindingKind(
        "stored-values-damaged",
        "warn",
        "Stored values are damaged; they count as missing.",
        "If values are damaged again and again, limit who can reach the store.",
    ),
    FindingKind(
        "values-refused",
        "fail",
        "Stored values have no valid signature and are refused.",
        "Find the program that writes them, or compare auth_store and keys_file of all processes.",
    ),
    FindingKind(
        "values-unsigned",
        "warn",
        "Stored values are not signed.",
        "Set auth_store and keys_file for all consumers and schedulers.",
    ),
    FindingKind(
        "values-lack-code",
        "warn",
        "Stored values lack the code of a secret that is in force.",
        "Revoke no secret before they have it.",
    ),
    FindingKind(
        "claims-uncounted",
        "warn",
        "The signatures of claim records could not be counted.",
        "See the finding about the store.",
    ),
    FindingKind(
        "cell-unreadable",
        "warn",
        "No partition can be read, so the agents cannot be examined.",
        "See the findings about the stores and the designs.",
    ),
    FindingKind(
        "agents-unresponsive",
        "warn",
        "Nodes gave no sign of life for three heartbeats.",
        "Check that their agents run.",
    ),
    FindingKind(
        "incarnation-ahead",
        "fail",
        "An agent has once begun with a clock that was ahead, and consumers refuse its events.",
        "Stop the agent, delete the file of its incarnation, and start it again.",
    ),
    FindingKind(
        "clock-ahead",
        "warn",
        "The clock of a node is ahead of this machine's.",
        "Correct the time of the node (NTP).",
    ),
    FindingKind(
        "orders-expired",
        "warn",
        "A node refused orders as expired, so its clock or a scheduler's clock is wrong.",
        "Compare the time of the schedulers and of the node (NTP).",
    ),
    FindingKind(
        "node-name-conflict",
        "fail",
        "Two agents report the same node.",
        "Stop one of them, or give its node another name.",
    ),
    FindingKind(
        "leaving-with-instances",
        "warn",
        "A node is down or has left while it has instances.",
        "Evacuate it, or start its agent again.",
    ),
    FindingKind(
        "inventory-over-ceiling",
        "fail",
        "A node reports a larger capacity than inventory_ceilings allows and gets no instances.",
        "Find out whether its agent was changed, or raise the ceiling.",
    ),
    FindingKind(
        "event-signatures-unchecked",
        "warn",
        "The signatures of agents could not be checked.",
        "Run the doctor with the cell's keys.",
    ),
    FindingKind(
        "event-signatures-wrong",
        "fail",
        "An agent signs its events wrongly, and consumers refuse them.",
        "Write the keys of its node again with 'nodestate key node'.",
    ),
    FindingKind(
        "events-unsigned",
        "warn",
        "An agent does not sign its events.",
        "Give it its keys_file, and set its auth_events.",
    ),
    FindingKind(
        "events-unsigned-required",
        "fail",
        "An agent does not sign its events, and consumers refuse them.",
        "Give it its keys_file, and set its auth_events.",
    ),
    FindingKind(
        "agents-no-answer",
        "warn",
        "Agents did not answer when they were asked for their signatures.",
        "Check that they run.",
    ),
    FindingKind(
        "orders-unsigned",
        "warn",
        "Agents accepted orders without a signature.",
        "Give each scheduler its keys_file and auth_orders.",
    ),
    FindingKind(
        "orders-refused-signature",
        "warn",
        "Agents refused orders because of their signatures.",
        "Give each scheduler the keys_file of the cell, or find the program that sends the orders.",
    ),
    FindingKind(
        "answers-refused",
        "warn",
        "Schedulers refused answers of agents because of their signatures.",
        "Give the agent its keys_file and auth_orders, or find the program that answers for it.",
    ),
    FindingKind(
        "tags-unchecked",
        "warn",
        "The tags of allocations could not be checked.",
        "Run the doctor with the cell's keys.",
    ),
    FindingKind(
        "tags-missing",
        "warn",
        "Allocations have no valid tag of a scheduler.",
        "Run 'nodestate retag --adopt' if these instances are there.",
    ),
    FindingKind(
        "tags-missing-required",
        "fail",
        "Allocations have no valid tag of a scheduler, and schedulers do not believe them.",
        "Run 'nodestate retag --adopt' if these instances are there.",
    ),
    FindingKind(
        "tags-old-secret",
        "warn",
        "Allocations have no tag of a secret that is in force.",
        "Run 'nodestate retag' before you revoke another secret.",
    ),
    FindingKind(
        "check-failed",
        "fail",
        "A check could not be carried out.",
        "See the cause in its text.",
    ),
)
"""All findings, in the order of docs/reference/findings.md."""

BY_CODE: Final = {kind.code: kind for kind in FINDINGS}
