"""What the engine process tells the worker: one JSON object per line, on a descriptor nobody else writes to.

The worker tells it one job, and by a signal that it shall come to an end.
"""

import json
import math
import os
import signal
import sys
from typing import Any, TextIO

# Sent to it, the engine ends its search and hands over the best it has.
FINISH_SIGNAL = signal.SIGUSR1


class EventPipe:
    """The worker's end of the engine: `send` one event, then forget it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, kind: str, **fields: Any) -> None:
        """Write one event line at once. NaN and infinity become null: JSON has neither, and a database refuses them."""
        self._stream.write(json.dumps(finite({"type": kind, **fields}), allow_nan=False) + "\n")
        self._stream.flush()


def open_event_pipe() -> EventPipe:
    """Keep the original stdout for events and send everything printed from now on to stderr, which is the log.

    Done on the descriptor, not on `sys.stdout` alone: C++ libraries print too, and one stray line breaks the protocol.
    """
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return EventPipe(stream)


def finite(value: Any) -> Any:
    """The same JSON data with every non-finite number replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
