"""A service that runs in a thread of the test, with a real server and a client, over a cell of doubles."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import httpx

from harness.waiting import PATIENCE_S, wait_until
from nodestate.config import Config
from nodestate.designs.control import Control
from nodestate.designs.inspection import CellInspector
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.findings import Finding
from nodestate.scheduling import Scheduler
from nodestate.serve.access import Access
from nodestate.serve.app import create_app
from nodestate.serve.limits import Limits
from nodestate.serve.server import listen, run_server
from nodestate.serve.service import Service
from nodestate.testing import FaultyStore, MemoryServer, MemoryStore
from tests.machines.simulated_cell import SimulatedCell, all_well


class RunningService:
    """A service and its client, from ``with`` to its end.

    Args:
        config: settings of the cell.
        open_reader: opens the reader of the service; None: by the settings.
        open_inspector: opens the inspector of the service; None: by the settings.
        open_scheduler: opens its scheduler; None: by the settings.
        examine: examines the cell; None: as ``nodestate doctor`` does.
        address: where the server listens.
        access: the checks of hosts and tokens.
        limits: the limits of the server.
        tls: the context for TLS.
        debug: raise the errors of handlers.
    """

    _ending: ClassVar[set[threading.Thread]] = set()

    def __init__(
        self,
        config: Config,
        open_reader: Callable[[], Reader] | None = None,
        open_scheduler: Callable[[], Scheduler] | None = None,
        *,
        open_inspector: Callable[[Sequence[StoredDesign]], CellInspector] | None = None,
        examine: Callable[[Config, Control], Iterable[Finding]] | None = None,
        address: str = "127.0.0.1:0",
        access: Access | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        debug: bool = True,
    ) -> None:
        limits = limits or Limits()
        self.service = Service(
            config,
            open_reader,
            open_scheduler,
            max_streams=limits.max_streams,
            open_inspector=open_inspector,
            examine=examine,
        )
        self.listener = listen(address, tls=tls is not None)
        self._limits = limits
        self._tls = tls
        self._app = create_app(self.service, access, self._limits, debug=debug)
        self._stopping = self._started = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.client = httpx.Client(base_url=self.listener.url, timeout=PATIENCE_S, trust_env=False)

    @classmethod
    def over(cls, world: SimulatedCell, **options: Any) -> Self:
        """A service of a simulated cell."""
        _, stores = world.connected(lambda server: FaultyStore(MemoryStore(server), all_well))

        def open_inspector(designs: Sequence[StoredDesign]) -> CellInspector:
            return CellInspector(world.config, designs, stores=world.connected(MemoryStore)[1], clock=world.clock)

        _, more = world.connected(lambda server: FaultyStore(MemoryStore(server), all_well))

        def open_scheduler() -> Scheduler:
            reader = Reader(world.config, stores=more, clock=world.clock)
            claims = [MemoryStore(MemoryServer("claims", clock=world.clock))]  # the world judges all other writes
            return Scheduler(
                world.config, reader=reader, claims=claims, courier=world.broker.courier(), clock=world.clock
            )

        settings: dict[str, Any] = {
            "open_scheduler": open_scheduler,
            "open_inspector": open_inspector,
            "examine": lambda _config, _control: [],
            **options,
        }
        return cls(world.config, lambda: Reader(world.config, stores=stores, clock=world.clock), **settings)

    def _run(self) -> None:
        run_server(
            self._app,
            self.listener,
            lambda: self._stopping,
            self._note_start,
            self.service.end_waits,
            limits=self._limits,
            tls=self._tls,
        )

    def _note_start(self) -> None:
        self._started = True

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._started, "the server does not start")
        wait_until(lambda: self.service.feeds.main.current, "no view was read")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self.stop()

    def stop(self) -> None:
        """Stop the server, as a signal does. ``wait_until_stopped`` waits for its end."""
        self._stopping = True
        self._ending.add(self._thread)

    @classmethod
    def wait_until_stopped(cls) -> None:
        """Wait until all servers that were told to stop have stopped."""
        while cls._ending:
            thread = cls._ending.pop()
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the server does not stop"

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Send a GET request; underscores in the names of headers stand for hyphens."""
        return self.client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def publish(running: RunningService, topic: str, document: Any) -> None:
    """Publish an event in the event loop of the service."""
    loop = running.service.feeds.main._loop
    assert loop is not None
    loop.call_soon_threadsafe(running.service.hub.publish, topic, document)
