"""Composite Instance Root Retrieve, and Retrieve Without Bulk Data (PS3.4 Annexes Y and Z, REQ-DCM-43)."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread

from archive.config import Settings
from archive.dicom.file_meta import FileMeta, file_head
from archive.retrieve import select
from dicom_scp.classes import COMPOSITE_GET, COMPOSITE_MOVE, WITHOUT_BULK_GET
from dicom_scp.dimse import Field
from dicom_scp.status import Status
from tests.archive.dicom.correcting import correct, pn
from tests.archive.dicom.test_transcode import values
from tests.builders import ct_slice, data_set
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import (
    BIG_ENDIAN,
    DEFLATED,
    GETTER,
    RLE,
    Getter,
    counts,
    identifier,
    keep,
    retrieve_command,
)
from tests.dicom_scp.test_move import destination
from tests.dicom_scp.wire import CT, EXPLICIT, IMPLICIT, Proposed, request


def contexts(*syntaxes: str) -> tuple[Proposed, ...]:
    models = (COMPOSITE_GET, WITHOUT_BULK_GET, COMPOSITE_MOVE)
    return (
        Proposed(1, wire.VERIFICATION, (IMPLICIT,)),
        *(Proposed(11 + 2 * place, model, (EXPLICIT,)) for place, model in enumerate(models)),
        *(Proposed(31 + 2 * place, CT, (syntax,)) for place, syntax in enumerate(syntaxes)),
    )


def got(
    server: Running, model: str, keys: dict[str, Any], *syntaxes: str
) -> tuple[dict[str, Dataset], dict[str, bytes], Dataset]:
    """What came, decoded and as bytes, and the last response."""
    with Getter(server) as peer:
        accept = peer.associate(request(contexts=contexts(*syntaxes or (EXPLICIT,)), user=GETTER.user))
        by_id = {one.id: one.transfer_syntax for one in accept.results}
        assert {one.result for one in accept.results} == {0}
        context = 11 if model == COMPOSITE_GET else 13
        peer.say(wire.command(context, retrieve_command(Field.C_GET_RQ, model)))
        peer.say(wire.data_set(context, identifier(**keys)))
        came, responses = peer.collect()
        assert peer.echoes()
    syntax = by_id[31]
    head = file_head(FileMeta(CT, "1.2", syntax))
    return {uid: dcmread(BytesIO(head + data)) for uid, data in came.items()}, came, responses[-1]


@pytest.mark.req("REQ-DCM-43")
def test_instances_are_got_by_their_uids_alone(server: Running) -> None:
    one, _, three = keep(server.archive, *(ct_slice(number=number) for number in (1, 2, 3)))
    wanted = {"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": [one.SOPInstanceUID, three.SOPInstanceUID]}
    _, came, last = got(server, COMPOSITE_GET, wanted | {"StudyInstanceUID": "1.2.3"})  # no level above in this model
    assert came == {ds.SOPInstanceUID: data_set(ds) for ds in (one, three)}
    assert (last.Status, counts(last)) == (0, (None, 2, 0, 0))
    for keys in (
        {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": one.StudyInstanceUID},
        {"QueryRetrieveLevel": "FRAME", "SOPInstanceUID": one.SOPInstanceUID},
    ):
        _, came, last = got(server, COMPOSITE_GET, keys)
        assert (came, last.Status, last.OffendingElement) == ({}, Status.DOES_NOT_MATCH_CLASS, 0x00080052)


@pytest.mark.req("REQ-DCM-43")
def test_instances_are_moved_by_their_uids_alone_and_the_originator_is_named(settings: Settings) -> None:
    with (
        destination(settings) as to,
        running(settings, peers={"DEST": {"host": "127.0.0.1", "port": to.port}}) as server,
    ):
        one, two = keep(server.archive, ct_slice(number=1), ct_slice(number=2))
        with Getter(server) as peer:
            peer.associate(request(contexts=contexts(EXPLICIT)))
            peer.say(wire.command(15, retrieve_command(Field.C_MOVE_RQ, COMPOSITE_MOVE, "DEST")))
            peer.say(wire.data_set(15, identifier(QueryRetrieveLevel="IMAGE", SOPInstanceUID=two.SOPInstanceUID)))
            _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 1, 0, 0))
        assert to.came == {two.SOPInstanceUID: (EXPLICIT, data_set(two))}
        assert to.originators == {("TESTER", 5)}
        assert one.SOPInstanceUID not in to.came


def rich(**changes: Any) -> Dataset:
    """Pixels, an icon, a waveform, a document and overlays: all bulk data that there is."""
    ds = ct_slice(rows=64, columns=64, **changes)
    icon, channel = Dataset(), Dataset()
    icon.Rows, icon.PixelData = 1, b"\1\2"
    icon["PixelData"].VR = "OB"
    channel.WaveformBitsAllocated, channel.WaveformData = 16, bytes(10)
    channel["WaveformData"].VR = "OW"
    ds.IconImageSequence, ds.WaveformSequence = [icon], [channel]
    ds.EncapsulatedDocument = b"%PDF"
    ds.add_new(0x60000010, "US", 64)
    ds.add_new(0x60003000, "OW", bytes(512))
    ds.add_new(0x60023000, "OW", bytes(512))
    ds.add_new(0x7FE10010, "LO", "MINE")
    return ds


def without_bulk(ds: Dataset) -> list[object]:
    for tag in (0x60003000, 0x60023000, 0x00420011):
        del ds[tag]
    del ds.IconImageSequence[0].PixelData, ds.WaveformSequence[0].WaveformData, ds.PixelData
    return values(ds)


@pytest.mark.req("REQ-DCM-43")
@pytest.mark.parametrize("taken", [EXPLICIT, IMPLICIT, DEFLATED, RLE, "1.2.840.10008.1.2.4.50"])
@pytest.mark.parametrize("kept_in", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, RLE])
def test_without_bulk_data_everything_else_comes_in_any_syntax(server: Running, kept_in: str, taken: str) -> None:
    ds = rich(transfer_syntax=EXPLICIT if kept_in == RLE else kept_in)
    if kept_in == RLE:
        ds.compress(RLE, generate_instance_uid=False)
    keep(server.archive, ds)
    keys = {"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": ds.SOPInstanceUID}
    came, _, last = got(server, WITHOUT_BULK_GET, keys, taken)
    assert (last.Status, counts(last)) == (0, (None, 1, 0, 0))
    assert values(came[ds.SOPInstanceUID]) == without_bulk(ds)


@pytest.mark.req("REQ-DCM-43", "REQ-DCM-70")
@pytest.mark.parametrize("kept_in", [EXPLICIT, DEFLATED])
def test_without_bulk_data_it_is_corrected_all_the_same(server: Running, kept_in: str) -> None:
    ds = rich(transfer_syntax=kept_in)
    keep(server.archive, ds)
    correct(server.archive, "IPP1", {"00100010": pn("MARTIN^Zoé")})
    keys = {"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": ds.SOPInstanceUID}
    came, _, _ = got(server, WITHOUT_BULK_GET, keys, kept_in)
    made = came[ds.SOPInstanceUID]
    assert str(made.PatientName) == "MARTIN^Zoé"
    assert "PixelData" not in made
    assert "WaveformData" not in made.WaveformSequence[0]
    [stored] = select(server.archive, instance_uids=[ds.SOPInstanceUID])
    assert stored.stands()
