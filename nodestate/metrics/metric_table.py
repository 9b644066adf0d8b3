"""The table of all metrics: names, kinds, labels and meanings. Names and labels are frozen."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from nodestate.histogram import Histogram

PREFIX: Final = "nodestate_"
"""First part of the name of each metric."""

Part = Literal["consumer", "cell", "reader", "scheduler", "agent", "node"]
"""The part of a cell that a metric is about. Only the metrics of ``node`` have a label for the node."""


class MetricDefinition(NamedTuple):
    """One metric."""

    part: Part
    """The part of the cell that exports it."""
    name: str
    """Its name without ``PREFIX``."""
    kind: Literal["counter", "gauge", "histogram"]
    """Its type."""
    labels: tuple[str, ...]
    """The names of its labels."""
    help: str
    """Its meaning."""


class Sample(NamedTuple):
    """One value of a metric."""

    name: str
    """Name of the metric, without ``PREFIX``."""
    value: float | Histogram
    """The value; a histogram if the metric is one."""
    labels: tuple[str, ...] = ()
    """The values of its labels."""


METRICS: Final[tuple[MetricDefinition, ...]] = (
    MetricDefinition(
        "consumer",
        "consumer_events_total",
        "counter",
        ("outcome",),
        "Events folded into the state of a node, by outcome.",
    ),
    MetricDefinition("consumer", "dead_letters_total", "counter", ("reason",), "Messages refused for good."),
    MetricDefinition("consumer", "takeovers_total", "counter", (), "Partitions taken over."),
    MetricDefinition(
        "consumer", "fenced_total", "counter", (), "Writes refused because another consumer had taken the partition."
    ),
    MetricDefinition(
        "consumer", "epochs_begun_total", "counter", (), "Epochs begun because a store had lost its content."
    ),
    MetricDefinition("consumer", "repairs_total", "counter", (), "Repairs of stored state that readers asked for."),
    MetricDefinition("consumer", "resyncs_total", "counter", (), "Requests for reports sent to agents."),
    MetricDefinition(
        "consumer", "store_errors_total", "counter", ("server",), "Failed takeovers, writes and renewals of partitions."
    ),
    MetricDefinition("consumer", "broker_errors_total", "counter", (), "Failed calls of the broker."),
    MetricDefinition(
        "consumer",
        "commit_duration_seconds",
        "histogram",
        ("design",),
        "Time of one successful commit of one partition.",
    ),
    MetricDefinition("consumer", "batch_events", "histogram", (), "Messages in one batch of one partition."),
    MetricDefinition("consumer", "partitions_held", "gauge", (), "Partitions that this consumer owns."),
    MetricDefinition(
        "cell",
        "partition_behind_seconds",
        "gauge",
        ("design", "partition"),
        "How long the owner had not been caught up with its queue when it last renewed the head; +Inf if it never was.",
    ),
    MetricDefinition(
        "cell",
        "partition_head_age_seconds",
        "gauge",
        ("design", "partition"),
        "Time since the owner renewed the head; +Inf if there is no head.",
    ),
    MetricDefinition(
        "cell",
        "partition_complete",
        "gauge",
        ("design", "partition"),
        "1 if the owner knows all nodes of the partition and all its state can be read, otherwise 0.",
    ),
    MetricDefinition(
        "cell",
        "partition_incomplete_nodes",
        "gauge",
        ("design", "partition"),
        "Nodes of which a newer state than the stored one is known to exist.",
    ),
    MetricDefinition("cell", "queue_ready_messages", "gauge", ("partition",), "Messages that wait in the queue."),
    MetricDefinition("cell", "queue_consumers", "gauge", ("partition",), "Consumers of the queue."),
    MetricDefinition("cell", "nodes", "gauge", ("status", "zone"), "Nodes in the view."),
    MetricDefinition("cell", "nodes_unresponsive", "gauge", (), "Nodes without a sign of life for three heartbeats."),
    MetricDefinition("cell", "capacity_total", "gauge", ("class", "zone"), "Capacity of the nodes that are up."),
    MetricDefinition("cell", "capacity_used", "gauge", ("class", "zone"), "Used amount on these nodes."),
    MetricDefinition(
        "cell", "capacity_claimed", "gauge", ("class", "zone"), "Amount of claims that are not yet used on these nodes."
    ),
    MetricDefinition("reader", "view_age_seconds", "gauge", ("design",), "Age of the last view; +Inf if never read."),
    MetricDefinition(
        "reader",
        "view_refresh_duration_seconds",
        "histogram",
        ("design", "result"),
        "Time of one refresh: ok, partial (some partitions could not be read), or failed (none could).",
    ),
    MetricDefinition(
        "reader",
        "view_refusals_total",
        "counter",
        ("cause",),
        "Reads that were refused: the view is too old (stale-view), a node is (stale-nodes), or a receipt is not "
        "reached (behind).",
    ),
    MetricDefinition(
        "reader",
        "propagation_seconds",
        "histogram",
        (),
        "Time from an event of a node to the view that shows it, of one changed node of each refresh.",
    ),
    MetricDefinition(
        "scheduler",
        "decision_duration_seconds",
        "histogram",
        ("phase",),
        "Time of one call: refresh the view, choose nodes, write claims, or wait for the answer of an agent.",
    ),
    MetricDefinition(
        "scheduler",
        "decisions_total",
        "counter",
        ("result",),
        "Instances by result: selected, claimed, booted, no-host or failed.",
    ),
    MetricDefinition(
        "scheduler",
        "filter_removed_nodes_total",
        "counter",
        ("filter",),
        "Nodes that a filter removed and no filter before it did, summed over all decisions.",
    ),
    MetricDefinition(
        "scheduler", "claim_conflicts_total", "counter", (), "Writes of claims lost to another scheduler."
    ),
    MetricDefinition(
        "scheduler",
        "orders_refused_total",
        "counter",
        ("reason",),
        "Orders that agents refused, that came back, or that were not answered (no-answer).",
    ),
    MetricDefinition("scheduler", "reservations_held", "gauge", (), "Reservations whose claims the scheduler holds."),
    MetricDefinition(
        "agent",
        "agent_events_total",
        "counter",
        ("kind",),
        "Events published: report, change, heartbeat, leave, or resend (after a loss).",
    ),
    MetricDefinition("agent", "agent_unconfirmed_events", "gauge", (), "Events without a confirm of the broker."),
    MetricDefinition(
        "agent",
        "agent_confirm_duration_seconds",
        "histogram",
        (),
        "Time from a publish to its confirm; one event at a time is measured.",
    ),
    MetricDefinition(
        "agent", "orders_total", "counter", ("kind", "result"), "Orders carried out (done) or refused (the reason)."
    ),
    MetricDefinition("node", "node_status", "gauge", ("node", "status", "zone"), "1 for the present status."),
    MetricDefinition(
        "node",
        "node_age_seconds",
        "gauge",
        ("node",),
        "Seconds since the last sign of life of the node; +Inf if none is known.",
    ),
    MetricDefinition("node", "node_capacity_total", "gauge", ("node", "class"), "Capacity of the node."),
    MetricDefinition("node", "node_capacity_used", "gauge", ("node", "class"), "Used amount of the node."),
    MetricDefinition(
        "node",
        "node_capacity_claimed",
        "gauge",
        ("node", "class"),
        "Amount of claims that are not yet used there.",
    ),
    MetricDefinition(
        "node",
        "node_capacity_free",
        "gauge",
        ("node", "class"),
        "Capacity without the used and the claimed amount; negative if overcommitted.",
    ),
)
"""All metrics, in the order of docs/reference/metrics.md."""

BY_NAME: Final = {metric.name: metric for metric in METRICS}
