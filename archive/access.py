"""Who may do what (sheet 60 §5). Pure: a table, and questions to it.

An `Actor` is made once, where somebody is recognised (token, session, AE title, command line), and carries what
it may do. Rights "within scope" (◐ in the sheet) are not granted before scopes exist: in doubt, no.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from archive.errors import InvalidRequest, NotAllowed


class Action(StrEnum):
    """One row of the table of sheet 60 §5."""

    FIND = "find studies, patients, orders"
    SEE = "see images and reports"
    STORE = "store"
    EXPORT = "export media"
    SETTLE = "correct, merge, settle work items"
    REJECT = "reject"
    REVIEW = "read rejections"
    QUALITY = "see what was rejected for quality reasons"
    HOLD = "holds"
    FORESEE = "read holds and retention preview"
    RETENTION = "retention policy, approvals, resume"
    PURGES = "purges and certificates"
    AUDIT = "audit, who saw what"
    ADMINISTER = "users, tokens, peers, settings, backup, jobs"
    SYSTEM = "system, metrics, reports"
    TESTBED = "test bed"
    COMMIT = "ask for storage commitment"  # not a row there: whoever may store
    VERIFY = "check that the archive answers (C-ECHO)"
    WORKLIST = "ask for the modality worklist"
    PERFORM = "say what was performed (MPPS)"


class Role(StrEnum):
    """Roles of sheet 60 §4. A person may hold several."""

    RADIOLOGIST = "radiologist"
    TECHNOLOGIST = "technologist"
    SECRETARY = "secretary"
    REFERRING_PHYSICIAN = "referring_physician"
    IT_ADMIN = "it_admin"
    IDENTITY_OFFICER = "identity_officer"
    AUDITOR = "auditor"
    QUALITY = "quality"
    AM_DELEGUE = "am_delegue"
    AM_PRATICIEN_CONSEIL = "am_praticien_conseil"
    SERVICE = "service"


A, R = Action, Role
_AT_A_MODALITY = {A.WORKLIST, A.PERFORM}  # whoever logs in there, with the peer's own right (REQ-DCM-05)
_MAY: dict[Role, frozenset[Action]] = {
    R.RADIOLOGIST: frozenset(
        {A.FIND, A.SEE, A.STORE, A.COMMIT, A.EXPORT, A.SETTLE, A.REJECT, A.REVIEW, A.HOLD, A.FORESEE, A.RETENTION}
        | {A.PURGES, A.SYSTEM}
        | _AT_A_MODALITY
    ),
    R.TECHNOLOGIST: frozenset({A.FIND, A.SEE, A.STORE, A.COMMIT, A.EXPORT} | _AT_A_MODALITY),
    R.SECRETARY: frozenset({A.FIND, A.STORE, A.COMMIT, A.EXPORT, A.SYSTEM}),
    R.REFERRING_PHYSICIAN: frozenset(),
    R.IT_ADMIN: frozenset({A.PURGES, A.ADMINISTER, A.SYSTEM, A.TESTBED}),
    R.IDENTITY_OFFICER: frozenset({A.FIND, A.SETTLE}),
    R.AUDITOR: frozenset({A.PURGES, A.AUDIT, A.SYSTEM}),
    R.QUALITY: frozenset({A.FIND, A.REJECT, A.REVIEW, A.QUALITY, A.HOLD, A.FORESEE, A.RETENTION, A.PURGES, A.SYSTEM}),
    R.AM_DELEGUE: frozenset(),
    R.AM_PRATICIEN_CONSEIL: frozenset(),
    R.SERVICE: frozenset(
        {A.FIND, A.SEE, A.STORE, A.COMMIT, A.REVIEW, A.FORESEE, A.PURGES, A.AUDIT, A.SYSTEM, A.TESTBED} | _AT_A_MODALITY
    ),
}
EVERYTHING = frozenset(Action)

# What `dicom.peers.*.may` grants (sheet 60 §3). Verification is open to every accepted caller.
PEER_MAY: dict[str, frozenset[Action]] = {
    "store": frozenset({A.STORE, A.REJECT}),  # IOCM asks nothing more of whoever stores a rejection note
    "query": frozenset({A.FIND}),
    "retrieve": frozenset({A.SEE}),
    "commit": frozenset({A.COMMIT}),
    "worklist": frozenset({A.WORKLIST}),
    "mpps": frozenset({A.PERFORM}),
    "quality": frozenset({A.QUALITY}),
}

HL7_MAY = frozenset({A.SETTLE, A.FIND})  # a RIS says who patients are and what was ordered, and asks who they are


class Door(StrEnum):
    """Where the actor came in; part of every audit row."""

    DICOM = "dicom"
    DICOMWEB = "dicomweb"
    HL7 = "hl7"
    API = "api"
    FHIR = "fhir"
    DESK = "desk"
    COMMAND = "command"
    SYSTEM = "system"
    PROBE = "probe"  # the archive measures how soon images are there: nobody looks at them


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody, or some machine, that acts.

    `user` is the login, the token's name or the calling AE title; `source` the network address, or the host's
    user for a command.
    """

    user: str
    source: str
    door: Door
    may: frozenset[Action]


# The archive itself: what it does without being asked.
SYSTEM = Actor(user="minipacs", source="local", door=Door.SYSTEM, may=EVERYTHING)


def rights(roles: Iterable[str]) -> frozenset[Action]:
    """The union of what each role may do. Raises InvalidRequest for a role that does not exist."""
    granted: frozenset[Action] = frozenset()
    for name in roles:
        try:
            granted |= _MAY[Role(name)]
        except ValueError:
            raise InvalidRequest(f"unknown role {name!r}; roles are: {', '.join(Role)}") from None
    return granted


def demand(actor: Actor, action: Action) -> None:
    """Raise NotAllowed unless `actor` may do `action`. The edge audits the refusal before it answers (law 4)."""
    if action not in actor.may:
        raise NotAllowed(f"{actor.user} may not: {action.value}")
