"""Bytes as a typed view: nothing lost, nothing guessed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hl7_listener.message import NULL, HL7Error, Message, head, parse
from tests.hl7_listener.conftest import EVN, MSH, PID, a28, lines

SITE = "8859/15"


def read(raw: bytes, default: str = SITE) -> Message:
    return parse(raw, default_charset=default)


def refused(raw: bytes) -> tuple[int, str]:
    with pytest.raises(HL7Error) as caught:
        read(raw)
    return caught.value.code, caught.value.location


def names(message: Message) -> list[str]:
    return [segment.name for segment in message.segments]


def test_a_message_says_who_sends_what() -> None:
    raw = a28("X1")
    message = read(raw)
    assert (message.type, message.event, message.structure) == ("ADT", "A28", "ADT_A05")
    assert (message.control_id, message.sender, message.version) == ("X1", "RIS|CABINET", "2.5")
    assert message.charset == "UNICODE UTF-8"
    assert message.raw == raw
    assert names(message) == ["MSH", "EVN", "PID"]


def test_the_sender_is_named_by_its_namespaces_alone() -> None:
    msh = MSH.replace("|RIS|CABINET|", "|RIS^1.2.3^ISO|CABINET^1.2.4^ISO|")
    assert read(a28(msh=msh)).sender == "RIS|CABINET"


@pytest.mark.req("REQ-HL7-01")
@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\r\r", "\r\n\r\n"])
def test_segments_end_with_any_usual_line_end(end: str) -> None:
    message = read(lines(MSH.format(id=1), EVN, PID.format(pid=1, name="A"), end=end))
    assert names(message) == ["MSH", "EVN", "PID"]
    assert message.segments[-1].value(8) == "F"


@pytest.mark.req("REQ-HL7-01")
def test_a_line_feed_in_a_value_is_part_of_it_where_segments_end_with_a_carriage_return() -> None:
    message = read(lines(MSH.format(id=1), "OBX|1|TX|||one\ntwo"))
    assert message.segments[1].value(5) == "one\ntwo"


@pytest.mark.req("REQ-HL7-10")
@pytest.mark.parametrize("signs", ["|^~\\&", "#*@!%", "$,;:?", "|^~\\", "|^~", "|^", "|^~\\&#"])
def test_delimiters_are_those_of_the_message(signs: str) -> None:
    field, component, repetition, _escape, sub = (*signs, "", "", "")[:5]
    parts = (f"a{sub}b" if sub else "a", "d")
    value = component.join(parts) + (f"{repetition}e" if repetition else "")
    msh = field.join(["MSH", signs[1:], "R", "F", "", "", "2026", "", f"ADT{component}A28", "1", "P", "2.5"])
    message = read(lines(msh, field.join(["PID", "", "", value]) + field))
    assert (message.type, message.event, message.sender) == ("ADT", "A28", "R|F")
    found = message.segments[1].field(3)
    assert found[0].component(1) == "a"
    assert found[0].component(1, 2) == ("b" if sub else None)
    assert found[0].component(2) == "d"
    assert len(found) == (2 if repetition else 1)


@pytest.mark.req("REQ-HL7-10")
def test_other_delimiters_in_the_shared_sample(sample: Callable[[str], bytes]) -> None:
    pid = read(sample("proto/delims.hl7")).first("PID")
    assert pid is not None
    assert pid.value(5) == "DÉLI|MITEUR"
    assert (pid.value(3, 4), pid.value(3, 4, 2)) == ("CIM-RIVAGES", "2.25.171717001")


@pytest.mark.req("REQ-HL7-11")
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"D\T\Angelo", "D&Angelo"),
        (r"\F\\S\\T\\R\\E\ ", "|^&~\\ "),
        (r"a\S\b", "a^b"),
        (r"\XC3A9\t\X41\ ", "étA "),
        (r"\XFF\ ", r"\XFF\ "),  # no UTF-8
        (r"\XC3A\ ", r"\XC3A\ "),  # half a byte
        (r"\C2842\ \M247E42\ ", r"\C2842\ \M247E42\ "),
        (r"\Zvendor\ \ ", r"\Zvendor\ \ "),
        (r"\.br\a\H\b\N\ ", r"\.br\a\H\b\N\ "),  # a name is no formatted text
        ("C:\\", "C:\\"),
    ],
)
def test_escapes_are_undone_after_splitting_and_others_stay(written: str, meant: str) -> None:
    written, meant = written.rstrip(" "), meant.rstrip(" ")
    message = read(lines(MSH.format(id=1), f"PID|1||x||{written}^z"))
    assert message.segments[1].value(5) == meant
    assert message.segments[1].value(5, 2) == "z"


@pytest.mark.req("REQ-HL7-11", "REQ-HL7-84")
def test_line_breaks_and_highlighting_are_understood_in_formatted_text() -> None:
    text = r"one\.br\two\.sp2\three \H\loud\N\ \.ce\ "
    message = read(lines(MSH.format(id=1), f"OBX|1|FT|||{text}", f"OBX|2|ST|||{text}", f"NTE|1||{text}"))
    plain = "one\ntwo\n\nthree loud \\.ce\\ "
    assert message.segments[1].value(5) == plain
    assert message.segments[2].value(5) == text
    assert message.segments[3].value(3) == plain  # FT by hl7apy's table


@pytest.mark.req("REQ-HL7-12")
@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("UNICODE UTF-8", "utf-8", "CŒUR-À-L'ÉTÉ"),
        ("8859/1", "latin-1", "TÊTE"),
        ("8859/15", "iso8859-15", "CŒUR €"),
        ("ASCII", "ascii", "DUPONT"),
        ("8859/1~UNICODE UTF-8", "latin-1", "TÊTE"),
        ("", "iso8859-15", "CŒUR"),
        ("", "utf-8", "CŒUR"),
    ],
)
def test_the_declared_character_set_is_the_one(declared: str, codec: str, name: str) -> None:
    msh = MSH.replace("UNICODE UTF-8", declared)
    message = read(lines(msh.format(id=1), EVN, PID.format(pid=1, name=name), codec=codec))
    assert message.segments[2].value(5) == name


@pytest.mark.req("REQ-HL7-12")
def test_8859_1_is_not_windows_1252() -> None:
    msh = MSH.replace("UNICODE UTF-8", "8859/1")
    raw = lines(msh.format(id=1), PID.format(pid=1, name="X")).replace(b"||X^", b"||\x80^")
    assert read(raw).segments[1].value(5) == "\x80"


@pytest.mark.req("REQ-HL7-12")
def test_a_byte_order_mark_is_ignored() -> None:
    for msh in (MSH, MSH.replace("UNICODE UTF-8", "")):
        raw = b"\xef\xbb\xbf" + a28(name="ÉTÉ", msh=msh)
        assert read(raw).segments[2].value(5) == "ÉTÉ"


@pytest.mark.req("REQ-HL7-12")
def test_an_unknown_character_set_and_bytes_that_are_none_of_it_are_refused() -> None:
    assert refused(a28(msh=MSH.replace("UNICODE UTF-8", "KLINGON"))) == (103, "MSH^1^18")
    assert refused(a28(msh=MSH.replace("UNICODE UTF-8", "ISO IR87"))) == (103, "MSH^1^18")
    assert refused(a28().replace(b"DUPONT", b"DUP\xd4NT")) == (102, "MSH^1^18")
    assert refused(a28(msh=MSH.replace("UNICODE UTF-8", "ASCII"), name="ÉTÉ")) == (102, "MSH^1^18")


@pytest.mark.req("REQ-HL7-13")
def test_absent_and_null_are_told_apart_in_fields_and_components() -> None:
    pid = read(lines(MSH.format(id=1), 'PID|""||a^""^^c&""~""|||x""|"" ')).segments[1]
    assert pid.is_null(1)
    assert pid.value(1) is NULL
    assert (pid.value(2), pid.is_null(2), pid.field(2)) == (None, False, ())
    first, second = pid.field(3)
    assert [first.component(n) for n in (1, 2, 3, 4, 5)] == ["a", NULL, None, "c", None]
    assert first.component(2) is NULL
    assert first.component(4, 2) is NULL
    assert second.component(1) is NULL
    assert not pid.is_null(3)
    assert (pid.value(6), pid.value(7)) == ('x""', '"" ')
    assert pid.value(99) is None
    assert pid.value(0) is None


def test_two_quotes_that_were_escaped_are_a_text() -> None:
    value = read(lines(MSH.format(id=1), r"PID|\X2222\ ".rstrip())).segments[1].value(1)
    assert value == '""'
    assert value is not NULL


@pytest.mark.req("REQ-HL7-14", "REQ-HL7-15")
def test_unknown_segments_and_everything_behind_what_is_known_are_kept() -> None:
    long = "x" * 5000
    message = read(
        lines(
            MSH.format(id=1) + "|||||||||more",
            "ZBE|1^A^2.25^ISO|20260105|||Y",
            EVN,
            "XID|a^b|c",
            f"PID|{long}|2||I^^^A^PI^^^^^^^^^^^^^^20" + "|" * 60 + "last",
            "lower|case",
            "ZZZ",
        )
    )
    assert names(message) == ["MSH", "ZBE", "EVN", "XID", "PID", "lower", "ZZZ"]
    pid = message.first("PID")
    zbe = message.first("ZBE")
    assert pid is not None
    assert zbe is not None
    assert pid.value(1) == long
    assert pid.value(4, 19) == "20"  # CX has ten components in HL7 2.5
    assert pid.value(64) == "last"
    assert (zbe.value(1, 3), zbe.value(5)) == ("2.25", "Y")
    assert message.segments[3].value(1, 2) == "b"
    assert message.msh.value(26) is None
    assert message.msh.value(27) == "more"


def test_segments_of_one_name_are_counted() -> None:
    message = read(lines(MSH.format(id=1), "PID|1", "MRG|a", "PID|2", "MRG|b"))
    assert [(segment.seq, segment.value(1)) for segment in message.all("PID")] == [(1, "1"), (2, "2")]
    assert message.all("MRG")[1].at(1) == "MRG^2^1"
    assert message.all("MRG")[1].at(1, 1, 4, 2) == "MRG^2^1^1^4^2"
    assert message.first("OBX") is None


@pytest.mark.parametrize(
    "raw", [b"", b"PID|1", b"MSH", b"MSH|", b"MSH||", b"MSH|^^", b"MSHA^~", b"FHS|^~\\&|", b"\xff\xfe"]
)
def test_what_does_not_begin_with_a_readable_msh_is_refused(raw: bytes) -> None:
    assert refused(raw) == (100, "MSH^1")
    assert head(raw) is None


@pytest.mark.parametrize("version", ["", "9.9", "2.2", "2.7", "V2.5"])
def test_other_versions_are_refused(version: str) -> None:
    assert refused(a28(msh=MSH.replace("2.5^FRA^2.11", version))) == (203, "MSH^1^12")


@pytest.mark.parametrize("version", ["2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.5^FRA^2.11", "2.5^FRA^2.9"])
def test_each_version_of_the_sheet_is_read(version: str) -> None:
    message = read(a28(msh=MSH.replace("2.5^FRA^2.11", version)) + b"PV1|1|O\rROL|1\rARV|1\r")
    assert names(message) == ["MSH", "EVN", "PID", "PV1", "ROL", "ARV"]


def test_any_structure_in_msh_9_is_read_as_it_is_written() -> None:
    for kind in ("ADT^A28^NONSENSE", "ADT^A28", "ADT", "^^", "ADT^A28^ADT_A05^more"):
        assert names(read(a28(msh=MSH.replace("ADT^A28^ADT_A05", kind)))) == ["MSH", "EVN", "PID"]


@pytest.mark.req("REQ-HL7-04")
def test_forty_megabytes_in_one_field_are_read_in_seconds() -> None:
    document = "QUJD" * 10_000_000
    raw = lines(MSH.format(id=1), f"OBX|1|ED|||^TEXT^XML^Base64^{document}")
    start = monotonic()
    message = read(raw)
    assert message.segments[1].value(5, 5) == document
    assert monotonic() - start < 20  # a guard against copying it again and again; 1.5 s here


@pytest.mark.parametrize(
    "body",
    [
        b"PID" + b"|" * 1_000_000,
        b"PID|1\r" * 100_001,
    ],
)
def test_what_would_fill_the_memory_is_refused(body: bytes) -> None:
    assert refused(lines(MSH.format(id=1)) + body)[0] == 100


def test_segments_without_number_are_counted_before_they_are_cut() -> None:
    raw = lines(MSH.format(id=1)) + b"A\r" * 5_000_000
    tracemalloc.start()
    try:
        assert refused(raw)[0] == 100
        assert tracemalloc.get_traced_memory()[1] < 3 * len(raw)  # a list of them would be of eight bytes each
    finally:
        tracemalloc.stop()


def test_a_segment_of_any_name_has_a_place_only_when_it_could_be_one() -> None:
    for name, place in (("ZZZ", "ZZZ^1"), ("A\0B", ""), ("^\x1c&", ""), ("ZZZZ", "")):
        assert refused(lines(MSH.format(id=1), name + "|" * 1_001)) == (100, place)


def test_a_field_of_countless_parts_is_refused_when_it_is_asked_for() -> None:
    pid = read(lines(MSH.format(id=1), "PID|1||" + "~" * 100_000)).segments[1]
    assert pid.value(1) == "1"
    with pytest.raises(HL7Error) as caught:
        pid.field(3)
    assert (caught.value.code, caught.value.location) == (102, "PID^1^3")


PIECES = st.sampled_from(
    [
        *'|^~\\&\r\n"\0A1é',
        "MSH|^~\\&|",
        "\rPID|",
        "\rZBE|",
        "2.5",
        "2.3.1",
        "ADT^A28",
        '""',
        "\\X",
        "\x1c",
        "\ufeff",
        "€",
    ]
)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES, max_size=40), codec=st.sampled_from(["utf-8", "utf-16", "iso8859-15"]))
def test_any_bytes_are_read_or_refused_and_never_break_anything(pieces: list[str], codec: str) -> None:
    for start in ("", MSH.format(id=1)):
        raw = (start + "".join(pieces)).encode(codec, "ignore")
        head(raw)
        try:
            message = read(raw)
        except HL7Error as error:
            assert error.code in (100, 102, 103, 203)
            continue
        for segment in message.segments:
            for n in range(1, len(segment.raw_fields) + 1):
                for repetition in segment.field(n):
                    assert all(value is None or value for subs in repetition.components for value in subs)


VALUE = st.text(
    st.characters(exclude_characters='|^~\\&\r\n"', exclude_categories=("Cs", "Cc")), min_size=1, max_size=20
)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.lists(VALUE, min_size=1, max_size=12), min_size=1, max_size=12))
def test_every_value_comes_out_as_it_was_sent_wherever_it_stands(values: list[list[str]]) -> None:
    pid = "|".join(["PID", *("^".join(components) for components in values)])
    segment = read(lines(MSH.format(id=1), pid)).segments[1]
    for n, components in enumerate(values, 1):
        assert [segment.value(n, m) for m in range(1, len(components) + 1)] == components
