"""Why the archive says no. Two branches, because every protocol asks the same: will sending it again help?

Errors carry facts of the domain, never status codes: each edge owns one table that translates them
(`dicom_scp/status.py`, `api/problems.py`).
"""

from __future__ import annotations

from typing import Literal


class ArchiveError(Exception):
    """Nothing was promised. The message is for a person and names no patient."""


class Rejected(ArchiveError):
    """Sending the same thing again will not help."""


class Unavailable(ArchiveError):
    """Sending the same thing again, later, may help."""


class UnreadableInstance(Rejected):
    """The bytes are not a DICOM data set that can be read up to its Pixel Data."""


class UidMismatch(Rejected):
    """A UID is missing, illegal, or not the one that was announced (REQ-DCM-16)."""

    def __init__(self, detail: str, *, tag: int) -> None:
        super().__init__(detail)
        self.tag = tag


class InvalidQuery(Rejected):
    """The query breaks the rules of its protocol."""

    def __init__(self, detail: str, *, tag: int | None = None) -> None:
        super().__init__(detail)
        self.tag = tag


class AttributeRefused(Rejected):
    """An attribute of a data set is missing, empty or wrong; `tag` says which, `fault` what (PS3.7 Annex C)."""

    def __init__(self, detail: str, *, tag: int, fault: Literal["missing", "empty", "wrong"]) -> None:
        super().__init__(detail)
        self.tag = tag
        self.fault = fault


class TooLarge(Rejected):
    """The request, or its answer, is above a limit of the site."""


class Unsupported(Rejected):
    """Well formed, but not something this archive does."""


class NotAcceptable(Rejected):
    """The instance cannot be given in any form that the asker accepts without a new loss (REQ-DCM-41)."""


class NotAuthenticated(Rejected):
    """Nobody known is asking."""


class NotAllowed(Rejected):
    """The asker is known and may not do this."""


class InvalidRequest(Rejected):
    """An argument of an administrative act is wrong."""


class Conflict(Rejected):
    """The act contradicts the present state, for example a name that is already taken."""


class StillKept(Conflict):
    """Images are not removed before their time: `until` is the first day on which nothing keeps them (ISO; None: not
    by itself), `reasons` what does, as `archive.policy.Reason.shape` says it."""

    def __init__(self, detail: str, *, until: str | None, reasons: list[dict[str, str | None]]) -> None:
        super().__init__(detail)
        self.until = until
        self.reasons = reasons


class IdentifierInUse(Conflict):
    """An identifier that one thing has and another asks for; `what` it is of: patient, order or study."""

    def __init__(self, detail: str, *, what: str) -> None:
        super().__init__(detail)
        self.what = what


class MergedAway(Conflict):
    """The patient that is meant was merged into another one; both as `archive.dicom.patient_id.cx` gives them."""

    def __init__(self, detail: str, *, old: str, survivor: str) -> None:
        super().__init__(detail)
        self.old = old
        self.survivor = survivor


class InsNotQualified(Conflict):
    """The patient has no national identity (INS) that may be used, and what is asked for names them by it
    (REQ-DRIM-21)."""


class NotFound(Rejected):
    """No such thing, or nothing that the asker may see."""


class Gone(Rejected):
    """It was here and was removed, rejected or replaced; `alternate` is the SOP Instance UID to ask for, if any.

    `place` are the UIDs of what stands in its stead, from the study down: two for a series, three for an instance.
    """

    def __init__(self, detail: str, *, alternate: str | None = None, place: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.alternate = alternate
        self.place = place


class RejectedBefore(Rejected):
    """It was rejected for good (113037, 113038), and is sent again; `code` of DCM says why."""

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(detail)
        self.code = code


class StorageFull(Unavailable):
    """Less than the reserve is left on the volume (`storage.reserve_bytes`)."""


class StorageFailed(Unavailable):
    """The file system refused to write, flush or read."""


class IndexUnavailable(Unavailable):
    """The database cannot be reached, or its schema is not the one this version needs."""


class Busy(Unavailable):
    """A limit of parallel work is reached, or the archive is stopping."""


class CommitInDoubt(Unavailable):
    """COMMIT was sent and its result is unknown. Nothing is removed (law 7)."""


def unreadable(error: OSError) -> StorageFailed:
    """What it means that a stored file cannot be read."""
    return StorageFailed(f"the copy cannot be read: {error.strerror}")
