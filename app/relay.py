"""The gateway's relay: a thread that rings for what was submitted, so that no POST ever waits for the broker.

It also writes what requests left for later.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.shared.outbox import relay_outbox

# Also without a wake-up: rings that could not be sent during an outage go out soon after it.
SWEEP_SECONDS = 1.0
STOP_SECONDS = 5.0


@dataclass
class Relay:
    """A running relay thread. `wake` makes it look now."""

    sessions: sessionmaker[Session]
    ring: Callable[[], None]
    write_notes: Callable[[Session], None]
    woken: threading.Event = field(default_factory=threading.Event)
    stopping: bool = False
    healthy: bool = True

    def wake(self) -> None:
        self.woken.set()

    def run(self) -> None:
        """Relay until stopped. An outage of broker or database is logged when it begins and when it ends."""
        while not self.stopping:
            self.woken.wait(SWEEP_SECONDS)
            self.woken.clear()
            try:
                with self.sessions.begin() as session:
                    relay_outbox(session, self.ring)
                    self.write_notes(session)
            except Exception as error:  # noqa: BLE001  the border of the thread: without it, no job is rung for again
                self._note(healthy=False, error=f"{type(error).__name__}: {error}")
            else:
                self._note(healthy=True)

    def _note(self, *, healthy: bool, **facts: str) -> None:
        if healthy != self.healthy:
            structlog.get_logger().warning("relay recovered" if healthy else "relay cannot ring", **facts)
        self.healthy = healthy


def start_relay(
    sessions: sessionmaker[Session], ring: Callable[[], None], write_notes: Callable[[Session], None]
) -> tuple[Relay, threading.Thread]:
    """Start the relay. Stop it with `stop_relay`."""
    relay = Relay(sessions, ring, write_notes)
    thread = threading.Thread(target=relay.run, name="outbox-relay", daemon=True)
    thread.start()
    return relay, thread


def stop_relay(relay: Relay, thread: threading.Thread) -> None:
    """End the thread after its current sweep; a hanging broker is not waited for."""
    relay.stopping = True
    relay.wake()
    thread.join(STOP_SECONDS)
