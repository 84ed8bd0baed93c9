"""A gateway that is killed after a POST has committed, before a byte of its answer is out."""

import os
import signal

from app.idempotency import Answer
from app.main import create_app

__all__ = ["create_app"]

Answer.response = lambda _answer: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign,return-value]
