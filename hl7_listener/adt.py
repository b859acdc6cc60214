"""Patients: ADT messages of IHE PAM (HL7 2.5 chapter 3)."""

from __future__ import annotations

from hl7_listener.context import Handlers

HANDLERS: Handlers = {}
