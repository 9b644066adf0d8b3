"""Orders to agents: boots and their answers, terminations, hint updates, and the repair of unfinished operations.

Each kind of order has a module of its own: ``boot`` (the state of one boot) and ``boot_tracker`` (all boots under way),
``termination_orders``, ``supersession``, ``hint_updates`` and ``node_order_batches``. ``order_sender`` sends all orders
to the agents, and ``deadlines`` says until when an order may be carried out. ``order_tracker`` builds these parts for a
scheduler. ``reconciler`` finds operations that a dead scheduler left unfinished.
"""

from nodestate.scheduling.orders.boot import (
    NO_ANSWER,
    Boot,
    Booted,
    BootOutcome,
    Failed,
    NodeRefusal,
    outcomes_of,
)
from nodestate.scheduling.orders.hint_updates import HintUpdate
from nodestate.scheduling.orders.node_order_batches import NodeOrderBatch, NodeOrderBatches, NodeOrderResult
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.scheduling.orders.order_tracker import OrderTracker
from nodestate.scheduling.orders.reconciler import Reconciler, all_members_built
from nodestate.scheduling.orders.refusals import refused_by
from nodestate.scheduling.orders.termination_orders import Termination

__all__ = [
    "NO_ANSWER",
    "Boot",
    "BootOutcome",
    "Booted",
    "Failed",
    "HintUpdate",
    "NodeOrderBatch",
    "NodeOrderBatches",
    "NodeOrderResult",
    "NodeRefusal",
    "OrderSender",
    "OrderTracker",
    "Reconciler",
    "Termination",
    "all_members_built",
    "outcomes_of",
    "refused_by",
]
