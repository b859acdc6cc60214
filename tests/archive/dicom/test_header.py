import io
import time
import warnings
import zlib
from contextlib import suppress

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from archive.dicom.attributes import ATTRIBUTES, BY_KEYWORD, Level
from archive.dicom.elements import MAX_NESTING
from archive.dicom.header import MAX_VALUE_BYTES
from archive.errors import UidMismatch, UnreadableInstance
from tests.archive.dicom.reading import as_json, comparable, header_of, read, real_files
from tests.builders import ct_slice, data_set, new_uid

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


def encoded(ds: Dataset, syntax: str) -> bytes:
    """The data set's bytes in one of the four basic syntaxes."""
    buffer = io.BytesIO()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(buffer, ds, implicit_vr=implicit, little_endian=little)
    raw = buffer.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        deflate = zlib.compressobj(wbits=-15)
        raw = deflate.compress(raw) + deflate.flush()
        raw += b"\0" * (len(raw) % 2)
    return raw


def bare(**changes: object) -> Dataset:
    """A CT slice without file meta, so that it can be written in any syntax."""
    ds = ct_slice(**{"SOPInstanceUID": new_uid("bare")} | changes)
    del ds.file_meta
    return ds


def values(ds: Dataset, raw: bytes, syntax: str) -> None:
    """Everything that the header keeps is what pydicom reads."""
    header = header_of(raw, syntax)
    assert (header.sop_class_uid, header.sop_instance_uid) == (ds.SOPClassUID, ds.SOPInstanceUID)
    assert (header.study_instance_uid, header.series_instance_uid) == (ds.StudyInstanceUID, ds.SeriesInstanceUID)
    for attribute in ATTRIBUTES:
        kept = header.levels[attribute.level].get(attribute.key)
        assert (kept is not None) == (attribute.tag in ds), attribute.keyword
        if kept is not None:
            assert comparable(kept) == as_json(ds, attribute.tag), attribute.keyword


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_header_is_read_in_every_basic_transfer_syntax(syntax: str) -> None:
    ds = bare()
    ds.RequestAttributesSequence = [Dataset(), Dataset()]
    ds.RequestAttributesSequence[0].ScheduledProcedureStepID = "SPS1"
    ds.RequestAttributesSequence[1].RequestedProcedureID = "RP2"
    values(ds, encoded(ds, syntax), syntax)


def test_offsets_count_from_the_start_of_the_data_set() -> None:
    raw = data_set(ct_slice())
    header = header_of(raw, ExplicitVRLittleEndian)
    assert header.pixel_offset is not None
    assert raw[header.pixel_offset :].startswith(b"\xe0\x7f\x10\x00OW")
    assert not header.truncated
    assert header_of(raw[:-1], ExplicitVRLittleEndian).truncated
    assert header_of(encoded(bare(PixelData=None), ExplicitVRLittleEndian), ExplicitVRLittleEndian).pixel_offset is None


@pytest.mark.req("REQ-DCM-16")
@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "1..2", ".1", "1.", "1.2\\1.3", "1" * 65, "é", "1 .2"])
def test_a_missing_empty_or_illegal_uid_is_named(keyword: str, value: str | None) -> None:
    ds = bare()
    if value is None:
        delattr(ds, keyword)
    else:
        ds.add_new(keyword, "UI", "")
        ds[keyword]._value = value
    with pytest.raises(UidMismatch) as refused:
        header_of(encoded(ds, ExplicitVRLittleEndian), ExplicitVRLittleEndian)
    assert refused.value.tag == BY_KEYWORD[keyword].tag


def test_keys_are_normalised_for_matching() -> None:
    ds = bare(PatientName="LEFÈVRE^Anaïs^^^", StudyTime="1015", StudyID=None, SeriesNumber="12", PatientID=" IPP 1 ")
    ds.add_new("StudyDate", "DA", "")
    ds["StudyDate"]._value = "2026.01.05"
    header = header_of(encoded(ds, ExplicitVRLittleEndian), ExplicitVRLittleEndian)
    assert header.keys[Level.PATIENT]["patient_name"] == "lefevre^anais"
    assert header.keys[Level.PATIENT]["patient_id"] == "IPP 1"
    assert header.keys[Level.PATIENT]["birth_date"] == "19700101"
    assert header.keys[Level.STUDY]["study_date"] == "20260105"
    assert header.keys[Level.STUDY]["study_time"] == "101500.000000"
    assert header.keys[Level.STUDY]["study_id"] == ""
    assert header.keys[Level.SERIES]["series_number"] == 12
    assert header.keys[Level.SERIES]["pps_start_date"] is None
    assert header.keys[Level.IMAGE]["sop_class_uid"] == header.sop_class_uid
    assert header.levels[Level.PATIENT]["00100010"]["Value"] == [{"Alphabetic": "LEFÈVRE^Anaïs^^^"}]


@pytest.mark.req("REQ-DCM-60")
def test_text_without_a_charset_is_read_as_the_site_says_and_flagged() -> None:
    ds = bare(SpecificCharacterSet="ISO_IR 100")
    raw = encoded(ds, ExplicitVRLittleEndian)
    assert not header_of(raw, ExplicitVRLittleEndian).charset_assumed
    nameless = raw[8 + 10 :]  # without (0008,0005)
    header = header_of(nameless, ExplicitVRLittleEndian)
    assert header.charset_assumed
    assert header.levels[Level.STUDY]["00080090"]["Value"] == [{"Alphabetic": "LEFÈVRE^Anaïs"}]
    other = header_of(nameless, ExplicitVRLittleEndian, default_charset="ISO_IR 144")
    assert other.levels[Level.STUDY]["00080090"]["Value"] == [{"Alphabetic": "LEFШVRE^Anaяs"}]
    plain = bare(ReferringPhysicianName="LEFEVRE", SpecificCharacterSet=None)
    assert not header_of(encoded(plain, ExplicitVRLittleEndian), ExplicitVRLittleEndian).charset_assumed


def nested(depth: int) -> bytes:
    """A private sequence of undefined lengths, nested."""
    opening = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return opening * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth


def test_nesting_has_a_limit() -> None:
    raw = encoded(bare(), ExplicitVRLittleEndian)
    assert header_of(nested(MAX_NESTING - 1) + raw, ExplicitVRLittleEndian)
    with pytest.raises(UnreadableInstance):
        header_of(nested(MAX_NESTING + 1) + raw, ExplicitVRLittleEndian)
    with pytest.raises(UnreadableInstance):
        header_of(nested(100_000) + raw, ExplicitVRLittleEndian)


def test_un_of_undefined_length_is_implicit_inside() -> None:
    item = b"\x08\x00\x00\x01\x04\0\0\0ABCD"
    sequence = b"\x09\x00\x10\x10UN\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item
    raw = sequence + b"\xfe\xff\xdd\xe0\0\0\0\0" + encoded(bare(), ExplicitVRLittleEndian)
    assert header_of(raw, ExplicitVRLittleEndian).sop_instance_uid


def test_a_length_beyond_the_end_is_refused_without_allocating_it() -> None:
    raw = encoded(bare(PixelData=None), ExplicitVRLittleEndian)
    for broken in (
        raw + b"\x09\x70\x10\x10OB\0\0\xf0\xff\xff\xff",
        raw + b"\x09\x70\x10\x10LO\x08\x00abc",
        raw + b"\x09\x70\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xf0\xff\xff\x7f",
        raw + b"\x09\x70\x10\x10SQ\0\0\xff\xff\xff\xff",
        raw + b"\x09\x70\x10\x10O",
        raw[:-3],
    ):
        with pytest.raises(UnreadableInstance):
            header_of(broken, ExplicitVRLittleEndian)
    assert header_of(raw + b"\0" * 20, ExplicitVRLittleEndian)  # padding at the end


def test_a_deflated_data_set_that_is_cut_or_damaged_is_unreadable() -> None:
    raw = encoded(bare(), DeflatedExplicitVRLittleEndian)
    assert header_of(raw, DeflatedExplicitVRLittleEndian).pixel_offset is None
    for broken in (raw[: len(raw) // 4], b"\xff" + raw, b""):
        with pytest.raises((UnreadableInstance, UidMismatch)):
            header_of(broken, DeflatedExplicitVRLittleEndian)


def test_values_that_are_too_long_are_left_out_of_the_index() -> None:
    ds = bare()
    ds.PatientComments = "x" * (MAX_VALUE_BYTES + 2)
    header = header_of(encoded(ds, ImplicitVRLittleEndian), ImplicitVRLittleEndian)
    assert "00104000" not in header.levels[Level.PATIENT]
    assert header.levels[Level.PATIENT]["00100020"] == {"vr": "LO", "Value": ["IPP1"]}


def test_malformed_numbers_stay_text_and_have_no_key() -> None:
    ds = bare()
    for keyword, value in (("SeriesNumber", "1.5"), ("InstanceNumber", "99999999999"), ("PatientSize", "1,75")):
        ds.add_new(keyword, BY_KEYWORD[keyword].vr, None)
        ds[keyword].VR = "LO"
        ds[keyword]._value = value
    header = header_of(encoded(ds, ImplicitVRLittleEndian), ImplicitVRLittleEndian)
    assert header.levels[Level.SERIES]["00200011"] == {"vr": "IS", "Value": ["1.5"]}
    assert header.levels[Level.STUDY]["00101020"] == {"vr": "DS", "Value": ["1,75"]}
    assert header.keys[Level.SERIES]["series_number"] is None
    assert header.keys[Level.IMAGE]["instance_number"] is None


@pytest.mark.req("REQ-DCM-16")
def test_real_files_read_as_pydicom_reads_them() -> None:
    compared = refused = 0
    for path, syntax, offset in real_files():
        raw = path.read_bytes()[offset:]
        try:
            header_of(raw, syntax)
        except UidMismatch as error:
            ds = read(path, stop_before_pixels=True)
            uid = str(ds.get(error.tag).value) if error.tag in ds else ""
            assert not uid or not set(uid) <= set("0123456789."), path
            refused += 1
        except UnreadableInstance:
            assert path.name == "rtplan_truncated.dcm"
            refused += 1
        else:
            values(read(path, stop_before_pixels=True), raw, syntax)
            compared += 1
    assert compared > 340 and refused < 30


LATIN = st.text(st.sampled_from("ABCdef 0123^=-.éèœ€"), max_size=12).map(str.strip)
VALUES: dict[str, st.SearchStrategy] = {
    "PN": LATIN.map(lambda text: text.replace("=", " ").strip()),
    "LO": LATIN,
    "SH": LATIN,
    "LT": LATIN,
    "CS": st.sampled_from(["CT", "ORIGINAL\\PRIMARY", "", "M"]),
    "DA": st.dates().map(lambda day: day.strftime("%Y%m%d").zfill(8)) | st.just(""),
    "TM": st.sampled_from(["1015", "101530", "101530.5", ""]),
    "AS": st.sampled_from(["045Y", ""]),
    "IS": st.integers(-(2**31), 2**31 - 1),
    "DS": st.decimals(-1000, 1000, places=3).map(str),
    "US": st.integers(0, 65535),
    "UI": st.just("1.2.3"),
}


@st.composite
def data_sets(draw: st.DrawFn) -> Dataset:
    ds = bare(SpecificCharacterSet="ISO_IR 192")
    for attribute in draw(st.lists(st.sampled_from(ATTRIBUTES), max_size=12)):
        if attribute.vr == "SQ":
            items = []
            for code in draw(st.lists(LATIN, max_size=3)):
                item = Dataset()
                item.CodeMeaning = code
                item.is_undefined_length_sequence_item = draw(st.booleans())
                items.append(item)
            ds.add_new(attribute.tag, "SQ", Sequence(items))
            ds[attribute.tag].is_undefined_length = draw(st.booleans())
        elif attribute.vr != "UI":
            ds.add_new(attribute.tag, attribute.vr, draw(VALUES[attribute.vr]))
    if draw(st.booleans()):
        block = ds.private_block(0x0019, "MINIPACS TESTS", create=True)
        block.add_new(0x01, draw(st.sampled_from(["OB", "UN"])), draw(st.binary(max_size=40)))
        block.add_new(0x02, "SQ", Sequence([Dataset(), bare()]))
        ds[0x00191002].is_undefined_length = draw(st.booleans())
    return ds


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(data_sets(), st.sampled_from(SYNTAXES))
def test_random_data_sets_read_as_pydicom_reads_them(ds: Dataset, syntax: str) -> None:
    raw = encoded(ds, syntax)
    again = io.BytesIO(raw if syntax != DeflatedExplicitVRLittleEndian else zlib.decompress(raw, -15))
    read_again = pydicom.filereader.read_dataset(again, syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
    values(read_again, raw, syntax)


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(SYNTAXES))
def test_damaged_bytes_are_refused_or_read_and_never_anything_else(data: st.DataObject, syntax: str) -> None:
    ds = bare(PixelData=b"\0" * 32)
    ds.RequestAttributesSequence = [Dataset()]
    ds.RequestAttributesSequence[0].CodeMeaning = "é"
    ds["RequestAttributesSequence"].is_undefined_length = True
    raw = bytearray(encoded(ds, syntax))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert", "ff"]))
        if change == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif change == "ff":
            raw[at : at + 4] = b"\xff\xff\xff\xff"
        elif change == "insert":
            raw[at:at] = data.draw(st.binary(max_size=12))
        else:
            del raw[at : at + data.draw(st.integers(1, 20))]
        if not raw:
            break
    began = time.thread_time()
    with suppress(UidMismatch, UnreadableInstance):
        header_of(bytes(raw), syntax)
    assert time.thread_time() - began < 1


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
def test_garbage_is_refused(raw: bytes, syntax: str) -> None:
    with pytest.raises((UidMismatch, UnreadableInstance)):
        header_of(raw, syntax)
