"""One side of orders and answers between two versions, over a real RabbitMQ.

The same file runs under today's code and under an older commit, as ``exchange.py`` does::

    python order_exchange.py agent|scheduler URL CELL NODE
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any, Final

import structlog

from nodestate.broker import KombuCourier, KombuSink
from nodestate.config import Config

COUNT: Final = 5
EXPIRES_S: Final = 600.0


def _orders_module() -> Any:
    try:
        return import_module("nodestate.model.orders")
    except ModuleNotFoundError:
        return import_module("nodestate.orders")


def serve(config: Config, node: str) -> list[str]:
    """Answer orders for a node until ``COUNT`` came with different ids. Returns the ids."""
    answer = _orders_module().Answer
    sink = KombuSink(config)
    sink.listen_for([node])
    ids: dict[str, None] = {}
    while len(ids) < COUNT:
        sink.resyncs(0.1)
        for order in sink.orders():
            ids[order.id] = None
            sink.answer(
                order.reply_to, answer(id=order.id, node=node, instance=order.instance, incarnation=5, generation=6)
            )
    sink.resyncs(0.5)
    sink.close()
    return sorted(ids)


def send(config: Config, node: str) -> list[str]:
    """Send each of ``COUNT`` orders until it is carried out. Returns the ids."""
    end = _orders_module().End
    courier = KombuCourier(config)
    ids = []
    for number in range(COUNT):
        done = False
        while not done:
            courier.send([end(id=f"o-{number}", node=node, instance="vm", reply_to=courier.reply_to)], EXPIRES_S)
            answers = courier.answers(1.0)
            done = any(one.id == f"o-{number}" and not one.refused for one in answers)
        ids.append(f"o-{number}")
    courier.close()
    return ids


def main(role: str, url: str, cell: str, node: str) -> None:
    """Play one role, and write the ids as JSON to stdout."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    config = Config(broker=url, cell=cell, partitions=1)
    sys.stdout.write(json.dumps((serve if role == "agent" else send)(config, node)))


if __name__ == "__main__":
    main(*sys.argv[1:])
