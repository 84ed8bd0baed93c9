"""Clients that go on submitting, each job under an idempotency key, until they are told that it is accepted."""

import json
import threading
import time
from dataclasses import dataclass, field

import httpx

from app.shared.ids import new_id
from tests.faults.deployment import Deployment

MODEL = b"PK\x03\x04" + bytes(range(256)) * 4000
SPEC = json.dumps({"datasets": {"repair": "upload:repair"}}).encode()
PAUSE_SECONDS = 1.0


@dataclass
class Stream:
    """What the clients were told: the ids for each key, of which there must be one, and answers that are none."""

    deployment: Deployment
    accepted: dict[str, set[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, clients: int = 2) -> None:
        """Once more, if it was stopped; what was accepted before stays."""
        self.stopped.clear()
        self.threads = [threading.Thread(target=self._go_on, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def stop(self, seconds: float = 60) -> None:
        """Each client still brings its last job to an answer."""
        self.stopped.set()
        for thread in self.threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a client got no answer"

    def submit(self, *, behave: str = "chatter", seconds: float = 60) -> str | None:
        """One job, sent again with the same key until there is an answer."""
        key, deadline = new_id("req"), time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self._try(key, behave)
            if status == 202:
                return next(iter(self.accepted[key]))
            if status is not None and status < 500:
                self.refused.append(f"{status} for {key}")
                return None
            time.sleep(0.1)
        return None

    def _try(self, key: str, behave: str) -> int | None:
        headers = {"Authorization": f"Bearer {self.deployment.key}", "Idempotency-Key": key}
        # The content differs from job to job, so that each has objects of its own.
        files = [("spec", (None, SPEC, "application/json")), ("model", ("m.pt", MODEL + key.encode())),
                 ("repair", ("d.npz", f"behave:{behave}".encode()))]  # fmt: skip
        try:
            answer = httpx.post(f"{self.deployment.url}/v1/jobs", headers=headers, files=files, timeout=30)
        except httpx.TransportError:
            return None
        if answer.status_code == 202:
            self.accepted.setdefault(key, set()).add(answer.json()["id"])
        return answer.status_code

    def _go_on(self) -> None:
        while not self.stopped.wait(PAUSE_SECONDS):
            self.submit()
