"""Orders: ORM messages (HL7 2.5 chapter 4)."""

from __future__ import annotations

from hl7_listener.context import Handlers

HANDLERS: Handlers = {}
