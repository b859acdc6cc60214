"""C-FIND, C-GET and C-MOVE of studies that were replaced by lossy copies: never a silent substitution (REQ-DCM-84)."""

from __future__ import annotations

import os
from typing import Any

import pytest
from pydicom.dataset import Dataset

from archive.access import Actor
from archive.core import Archive
from dicom_scp.dimse import Field
from dicom_scp.find import STUDY_ROOT_FIND
from dicom_scp.status import Status
from tests.archive.lifecycle.aging import (
    SERIES,
    STUDY,
    copy_of,
    migrated,
    noise,
    old_study,
    path_of,
    received,
    slices,
    switched,
)
from tests.builders import data_set
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import GETTER, Getter, counts, identifier, stored
from tests.dicom_scp.test_find import asked, found
from tests.dicom_scp.test_find import identifier as query
from tests.dicom_scp.test_move import Destination
from tests.dicom_scp.wire import CT, EXPLICIT, IMPLICIT

J2K = "1.2.840.10008.1.2.4.91"


def image(*uids: Any) -> dict[str, Any]:
    return {"QueryRetrieveLevel": "IMAGE", "StudyInstanceUID": STUDY, "SOPInstanceUID": [str(uid) for uid in uids]}


def copied(archive: Archive, ds: Dataset) -> str:
    return str(copy_of(archive, ds).sop_instance_uid)


def alternates(archive: Archive, actor: Actor, *uids: str) -> dict[str, Dataset]:
    asking = query(
        "IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=None, SOPInstanceUID=list(uids) or None,
        AlternateRepresentationSequence=[], AvailableTransferSyntaxUID=None,
    )  # fmt: skip
    return {answer.SOPInstanceUID: answer for answer in found(asked(archive, actor, asking, STUDY_ROOT_FIND))}


@pytest.mark.req("REQ-DCM-83")
def test_find_by_uid_says_both_ways_what_stands_for_what(archive: Archive, actor: Actor) -> None:
    first, second, _ = old_study(archive)
    answers = alternates(archive, actor, first.SOPInstanceUID, second.SOPInstanceUID)
    assert answers.keys() == {first.SOPInstanceUID, second.SOPInstanceUID}
    answer = answers[first.SOPInstanceUID]
    assert answer.InstanceAvailability == "UNAVAILABLE" and not answer.AvailableTransferSyntaxUID
    (item,) = answer.AlternateRepresentationSequence
    purpose = item.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121325", "DCM")
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (CT, copied(archive, first))
    assert item.SeriesInstanceUID not in ("", SERIES)
    back = alternates(archive, actor, item.ReferencedSOPInstanceUID)[item.ReferencedSOPInstanceUID]
    assert (back.InstanceAvailability, back.AvailableTransferSyntaxUID) == ("NEARLINE", J2K)
    (item,) = back.AlternateRepresentationSequence
    assert item.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121324"


@pytest.mark.req("REQ-DCM-83", "REQ-DCM-42")
def test_find_of_a_study_sees_only_what_is_current(archive: Archive, actor: Actor) -> None:
    originals = old_study(archive)
    assert alternates(archive, actor).keys() == {copied(archive, ds) for ds in originals}
    for level, more in (("SERIES", {"SeriesInstanceUID": SERIES}), ("IMAGE", {"SeriesInstanceUID": SERIES})):
        assert found(asked(archive, actor, query(level, StudyInstanceUID=STUDY, **more))) == []


@pytest.mark.req("REQ-DCM-83")
def test_in_grace_the_lossy_copies_are_unknown_to_find_and_get(server: Running, actor: Actor) -> None:
    (ds,) = received(server.archive, *slices(1))
    migrated(server.archive)
    uid = copied(server.archive, ds)
    assert alternates(server.archive, actor, uid) == {}
    answer = alternates(server.archive, actor, ds.SOPInstanceUID)[ds.SOPInstanceUID]
    assert answer.InstanceAvailability == "ONLINE" and not answer.AlternateRepresentationSequence
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, responses = peer.get(identifier(**image(uid)))
        assert (came, responses[-1].Status, counts(responses[-1])) == ({}, 0, (None, 0, 0, 0))
        came, responses = peer.get(identifier())
        assert came == {ds.SOPInstanceUID: data_set(ds)}


@pytest.mark.req("REQ-DCM-84")
def test_get_of_an_original_by_its_uid_fails_and_names_the_copy(server: Running) -> None:
    first, second, _ = old_study(server.archive)
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, responses = peer.get(identifier(**image(first.SOPInstanceUID)))
        last = responses[-1]
        assert (came, last.Status, counts(last)) == ({}, Status.SUB_OPERATIONS_FAILED, (None, 0, 1, 0))
        assert last.ErrorComment == f"see {copied(server.archive, first)}"
        assert last.identifier.FailedSOPInstanceUIDList == first.SOPInstanceUID
        came, responses = peer.get(identifier(**image(first.SOPInstanceUID, second.SOPInstanceUID)))
        last = responses[-1]
        assert (came, last.Status, counts(last)) == ({}, Status.SUB_OPERATIONS_FAILED, (None, 0, 2, 0))
        assert last.ErrorComment == "replaced, query alternates"
        assert list(last.identifier.FailedSOPInstanceUIDList) == [first.SOPInstanceUID, second.SOPInstanceUID]
        assert peer.echoes()


class Taker(Destination):
    """A destination that takes what is stored compressed."""

    def __init__(self) -> None:
        super().__init__(syntaxes=(EXPLICIT, IMPLICIT, J2K))


@pytest.fixture
def moving(settings: Any) -> Any:
    destination = Taker()
    peers = {"DEST": {"host": "127.0.0.1", "port": destination.port}, "CT1": {}}
    with running(settings, peers=peers, accept_unknown_callers=True) as server:
        yield server, destination
    destination.close()


@pytest.mark.req("REQ-DCM-84", "REQ-CDC-06")
def test_move_of_a_study_gives_one_representation_of_each_image(moving: Any) -> None:
    server, destination = moving
    good, bad = old_study(server.archive, slices(1)[0], noise())
    with Getter(server) as peer:
        peer.associate()
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
    assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 2, 0, 0))
    uid = copied(server.archive, good)
    assert destination.came.keys() == {uid, bad.SOPInstanceUID}
    assert destination.came[uid][0] == J2K
    assert path_of(server.archive, uid).read_bytes().endswith(destination.came[uid][1])


@pytest.mark.req("REQ-DCM-84")
def test_move_of_an_original_among_others_ends_with_a_warning(moving: Any) -> None:
    server, destination = moving
    good, bad = old_study(server.archive, slices(1)[0], noise())
    with Getter(server) as peer:
        peer.associate()
        peer.ask(9, Field.C_MOVE_RQ, identifier(**image(good.SOPInstanceUID, bad.SOPInstanceUID)), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (Status.WARNING, (None, 1, 1, 0))
        assert responses[-1].ErrorComment == f"see {copied(server.archive, good)}"
        assert destination.came.keys() == {bad.SOPInstanceUID}
        associations = destination.associations
        peer.ask(9, Field.C_MOVE_RQ, identifier(**image(good.SOPInstanceUID)), "DEST")
        _, responses = peer.collect()
    assert responses[-1].Status == Status.SUB_OPERATIONS_FAILED
    assert destination.associations == associations  # nobody is called for nothing


@pytest.mark.req("REQ-DCM-83", "REQ-DCM-84")
def test_a_get_that_the_switch_overtakes_fails_what_was_replaced_and_gives_no_other_bytes(server: Running) -> None:
    originals = received(server.archive, *slices(2), noise())
    bad = originals[-1]
    migrated(server.archive)
    with Getter(server) as peer:
        peer.associate(GETTER)
        peer.ask(7, Field.C_GET_RQ, identifier())
        context, command, data = peer.message()  # the others wait until it is answered
        assert switched(server.archive).stays is None
        peer.say(wire.command(context, stored(command, 0)))
        came, responses = peer.collect()
    came[command.sop_instance_uid] = data
    last = responses[-1]
    assert came == {ds.SOPInstanceUID: data_set(ds) for ds in (originals[0], bad)}  # the last one from cold storage
    assert (last.Status, counts(last)) == (Status.WARNING, (None, 2, 1, 0))
    assert last.ErrorComment == f"see {copied(server.archive, originals[1])}"
    assert last.identifier.FailedSOPInstanceUIDList == originals[1].SOPInstanceUID


def test_a_file_that_is_lost_is_not_said_to_be_replaced(server: Running) -> None:
    (ds,) = received(server.archive, *slices(1))
    os.unlink(path_of(server.archive, ds.SOPInstanceUID))
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, responses = peer.get(identifier())
    assert (came, responses[-1].Status, responses[-1].get("ErrorComment", "")) == (
        {},
        Status.SUB_OPERATIONS_FAILED,
        "",
    )
