"""Logs: a stable message plus fields, to stderr, one line an event. Never patient data (REQ-SEC-11)."""

from __future__ import annotations

import logging
import sys
import warnings
from enum import StrEnum

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


class Form(StrEnum):
    """How a line is written: `json` for machines, `text` for people."""

    JSON = "json"
    TEXT = "text"


# These libraries quote values of data sets or query strings in their messages; what matters of them is said by us.
_TALKATIVE = ("pydicom", "pynetdicom", "uvicorn.access")


def configure(form: Form = Form.TEXT, *, process: str) -> None:
    """Set up logging for this process; `process` is named in each line."""

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("process", process)
        return event

    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
    ]
    # tracebacks without local variables: those hold patient data
    last: list[Processor]
    if form is Form.JSON:
        last = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ]
    else:
        plain = structlog.dev.plain_traceback
        last = [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*common, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_logging(common, last)


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Control characters, which a peer may put into its AE title, are shown and do nothing to a terminal."""
    for name, value in event.items():
        if name != "exception" and isinstance(value, str) and not value.isprintable():
            event[name] = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in value)
    return event


def _adopt_standard_logging(common: list[Processor], last: list[Processor]) -> None:
    """What libraries say through `logging`, in the same form, from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
