"""What is done to a layout as a whole."""

from __future__ import annotations

from nodestate.broker.link import open_link, unavailable
from nodestate.broker.topology import Topology
from nodestate.config import Config


def delete_layout(config: Config) -> bool:
    """Delete the queues of these settings' layout, with what waits in them. False, and nothing is deleted, where somebody
    consumes from one (as far as the transport can tell). Raises ``BrokerUnavailableError``.

    What waits there is of no use: it is in the queues of every other layout as well.
    """
    topology = Topology.of(config)
    link = open_link(config, "operator")
    try:
        depths = [link.depth(name) for _, name in topology.queues()]
        if any(depth.consumers for depth in depths if depth is not None):
            return False
        link.delete(topology)
    except link.errors as error:
        raise unavailable(config, error) from error
    finally:
        link.close()
    return True
