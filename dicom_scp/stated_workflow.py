"""What the conformance statement says of the services around an exam: worklist, steps, commitment, availability."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.datadict import keyword_for_tag

from archive.sections import Dicom
from archive.workflow.item import OF_STEP, RETURNABLE
from dicom_scp.stated_services import Part, tags


def workflow(dicom: Dicom) -> Iterator[Part]:
    yield from _worklist()
    yield from _performed(dicom)
    yield from _commitment(dicom)
    yield from _availability(dicom)


def _worklist() -> Iterator[Part]:
    rows = [(keyword_for_tag(tag), tags((tag,)), vr) for tag, vr in RETURNABLE.items()]
    rows += [(f"> {keyword_for_tag(tag)}", tags((tag,)), vr) for tag, vr in OF_STEP.items()]
    yield Part(
        "Modality Worklist SCP",
        text=(
            "Fed by the orders of the RIS (HL7). Matching as in queries; start date and time are one interval. Items "
            "are those that are scheduled, unless another status is asked for. A key that is not supported is left "
            "out, and the status is FF01; the other statuses are those of C-FIND.",
        ),
        columns=("attribute", "tag", "VR"),
        rows=tuple(rows),
    )


def _performed(dicom: Dicom) -> Iterator[Part]:
    told = sorted(title for title, peer in dicom.callers().items() if peer.forward_mpps)
    yield Part(
        "Modality Performed Procedure Step SCP and SCU",
        text=(
            "N-CREATE and N-SET as SCP; the answer comes when what was said is durable. As SCU, every step is said on "
            "to " + (", ".join(told) or "the peers with `forward_mpps`") + ", with the patient as they are known now.",
        ),
        columns=("status", "when"),
        rows=(
            ("0000", "taken"),
            ("0107", "taken, but for attributes with which a step begins and which do not change"),
            ("0106 · 0120 · 0121", "a value is wrong · an attribute is missing · it has no value; Offending Element"),
            ("0111", "N-CREATE: the instance is there already"),
            ("0112", "N-SET: no such instance"),
            ("0117", "the SOP Instance UID is none"),
            ("0110, Error ID A710", "N-SET: the step is completed or discontinued"),
            ("0110", "the data set cannot be read"),
            ("0124 · 0213", "not allowed · out of resources, try again, or the data set is too long"),
        ),
    )


def _commitment(dicom: Dicom) -> Iterator[Part]:
    asking = sorted(title for title, peer in dicom.callers().items() if "commit" in peer.may)
    yield Part(
        "Storage Commitment SCP",
        text=(
            "Push Model, for " + (", ".join(asking) or "peers with `commit`") + ". N-ACTION is answered when the "
            "request is durable. Committed is what is current and whose copy was read to its end within a day and "
            "found good. The report is an N-EVENT-REPORT on a new association with the SCP role proposed, or on that "
            "of the request where `commit_association` says so; repeated until it is answered.",
        ),
        columns=("code", "when"),
        rows=(
            ("N-ACTION 0000", "the request is kept"),
            ("N-ACTION 0123 · 0112 · 0115", "another action · another instance · a data set that says no transaction"),
            ("N-ACTION 0124 · 0213", "not allowed · out of resources, or more than 50 000 instances"),
            ("event 1 · event 2", "all committed · some failed, each with Failure Reason"),
            ("reason 0112", "not held, held back, rejected, purged, or replaced by a lossy copy"),
            ("reason 0119 · 0122", "held under another SOP class · the class is not supported"),
            ("reason 0110", "no good copy is left"),
            ("reason 0131", "the Transaction UID was used for something else"),
        ),
    )


def _availability(dicom: Dicom) -> Iterator[Part]:
    yield Part(
        "Instance Availability Notification SCU",
        text=(
            "One N-CREATE for a study, to " + (", ".join(dicom.listeners()) or "the peers with `notify`") + ": "
            f"{dicom.notify_quiet_seconds:g} s after its last image, and at once when a performed step is complete, "
            "when images are rejected or come back, when it moves to cold storage, and when it is purged. Each "
            "instance with Retrieve AE Title and Instance Availability; what is hidden or gone as UNAVAILABLE.",
        ),
    )
