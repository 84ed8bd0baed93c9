"""Structured logs of gateway and worker: one JSON object per line on stderr, with the ids of request, job and trace."""

import logging
import sys

import structlog

from app.shared.telemetry import current_traceparent, is_traced, trace_id_of


def configure_logs(level: str) -> None:
    """Send structlog and the standard library's loggers (uvicorn, celery, sqlalchemy) through one JSON renderer."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        *([_add_trace_id] if is_traced() else []),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # The request border writes a better line, with the id and the seconds.
    logging.getLogger("uvicorn.access").disabled = True


def _add_trace_id(_logger: object, _name: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Of the span that is under way; a worker's lines name the trace of their job themselves."""
    trace_id = trace_id_of(current_traceparent())
    return line if trace_id is None else {"trace_id": trace_id, **line}
