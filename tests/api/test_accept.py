"""Accept → result, as a table (REQ-DCM-91, REQ-DCM-98)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.accept import (
    CAPABILITIES,
    METADATA,
    RENDERED,
    Representation,
    choose,
    content_type,
    of_frames,
    of_objects,
    parse,
    takes_gzip,
    wish,
)
from archive.dicom.syntaxes import EXPLICIT_LE
from archive.dicom.transcode import alternatives
from archive.errors import InvalidRequest, NotAcceptable

IMPLICIT = "1.2.840.10008.1.2"
BASELINE = "1.2.840.10008.1.2.4.50"
SV1 = "1.2.840.10008.1.2.4.70"
JLS = "1.2.840.10008.1.2.4.80"
J2K = "1.2.840.10008.1.2.4.90"
RLE = "1.2.840.10008.1.2.5"
HTJ2K = "1.2.840.10008.1.2.4.201"
MPEG4 = "1.2.840.10008.1.2.4.102"

# What is stored, and in which syntaxes it can be given; the first is what nobody has to name.
NATIVE = {"stored": EXPLICIT_LE, "syntaxes": alternatives(EXPLICIT_LE), "as_default": EXPLICIT_LE}
LOSSLESS = {"stored": JLS, "syntaxes": alternatives(JLS), "as_default": EXPLICIT_LE}
LOSSY = {"stored": BASELINE, "syntaxes": (), "as_default": BASELINE}

LOSSLESS_WISH = ",".join(
    f'multipart/related; type="application/dicom";transfer-syntax=1.2.840.10008.1.2{syntax};q={q};boundary=**'
    for syntax, q in (
        (".4.70", 0.9), (".4.80", 0.8), (".4.91", 0.6), (".4.50", 0.5), (".4.51", 0.5), (".4.100", 0.5),
        (".4.101", 0.5), (".4.102", 0.5), (".4.103", 0.5), (".1", 0.4),
    )
) + ","  # fmt: skip
LOSSY_WISH = ",".join(
    f'multipart/related; type="application/dicom";transfer-syntax=1.2.840.10008.1.2{syntax};q={q};boundary=**'
    for syntax, q in (
        (".4.50", 0.9), (".4.51", 0.9), (".4.70", 0.6), (".4.80", 0.5), (".4.91", 0.5), (".4.100", 0.5),
        (".4.101", 0.5), (".4.102", 0.5), (".4.103", 0.5), (".1", 0.4),
    )
) + ","  # fmt: skip

OBJECTS = [
    # nothing said, or anything will do: Explicit VR Little Endian, or as stored where that is lossy
    (None, NATIVE, EXPLICIT_LE),
    ("", NATIVE, EXPLICIT_LE),
    ("*/*", NATIVE, EXPLICIT_LE),
    ("*", NATIVE, EXPLICIT_LE),
    ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", NATIVE, EXPLICIT_LE),
    (None, LOSSLESS, EXPLICIT_LE),
    (None, LOSSY, BASELINE),
    # multipart, with and without quotes, blanks, capitals
    ('multipart/related; type="application/dicom"', NATIVE, EXPLICIT_LE),
    ("multipart/related; type=application/dicom", NATIVE, EXPLICIT_LE),
    ("multipart/related;type=application/dicom", LOSSLESS, EXPLICIT_LE),
    ('Multipart/Related ; TYPE = "Application/DICOM"', LOSSLESS, EXPLICIT_LE),
    ("multipart/related", LOSSLESS, EXPLICIT_LE),
    ("multipart/*", LOSSLESS, EXPLICIT_LE),
    ('multipart/related; type="application/*"', LOSSLESS, EXPLICIT_LE),
    ('multipart/related; type="*/*"', LOSSLESS, EXPLICIT_LE),
    ('multipart/related; type="application/dicom"; boundary=**', LOSSLESS, EXPLICIT_LE),
    ('multipart/related; type="application/dicom"; start="<a,b;c>"', LOSSLESS, EXPLICIT_LE),
    ('multipart/related; type="application/dicom",', LOSSLESS, EXPLICIT_LE),
    (',, multipart/related; type="application/dicom" ,,', LOSSLESS, EXPLICIT_LE),
    # as stored
    ('multipart/related; type="application/dicom"; transfer-syntax=*', LOSSLESS, JLS),
    ('multipart/related; type="application/dicom"; transfer-syntax="*"', LOSSLESS, JLS),
    ('multipart/related; type="application/dicom"; transfer-syntax=*', LOSSY, BASELINE),
    ("multipart/related; transfer-syntax=*", LOSSLESS, JLS),
    ("*/*; transfer-syntax=*", LOSSLESS, JLS),
    # a syntax by name
    (f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT_LE}', LOSSLESS, EXPLICIT_LE),
    (f'multipart/related; type="application/dicom"; transfer-syntax="{IMPLICIT}"', LOSSLESS, IMPLICIT),
    (f'multipart/related; type="application/dicom"; transfer-syntax={JLS}', LOSSLESS, JLS),
    (f'multipart/related; type="application/dicom"; transfer-syntax={J2K}', LOSSLESS, J2K),
    (f'multipart/related; type="application/dicom"; transfer-syntax={RLE}', NATIVE, RLE),
    (f'multipart/related; type="application/dicom"; transfer-syntax={HTJ2K}', NATIVE, None),  # no encoder
    (f'multipart/related; type="application/dicom"; transfer-syntax={BASELINE}', LOSSLESS, None),
    (f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT_LE}', LOSSY, None),
    # several, q
    (
        f"multipart/related; type=application/dicom; transfer-syntax={BASELINE}, "
        f"multipart/related; type=application/dicom; transfer-syntax={JLS}; q=0.5",
        LOSSLESS,
        JLS,
    ),
    (
        f"multipart/related; type=application/dicom; transfer-syntax={EXPLICIT_LE}; q=0.1, "
        f"multipart/related; type=application/dicom; transfer-syntax={JLS}; q=0.01",
        LOSSLESS,
        EXPLICIT_LE,
    ),
    (
        f"multipart/related; type=application/dicom; transfer-syntax={EXPLICIT_LE}, "
        f"multipart/related; type=application/dicom; transfer-syntax={JLS}",
        LOSSLESS,
        JLS,  # stored first on ties
    ),
    (
        f"multipart/related; type=application/dicom; transfer-syntax={EXPLICIT_LE}; q=0, "
        "multipart/related; type=application/dicom; transfer-syntax=*; q=0.1",
        LOSSLESS,
        JLS,
    ),
    ('multipart/related; type="application/dicom"; q=0, */*', LOSSLESS, None),
    ('multipart/related; type="application/dicom"; q=0', NATIVE, None),
    # nothing of this
    ("application/dicom+json", NATIVE, None),
    ('multipart/related; type="application/dicom+xml"', NATIVE, None),
    ("text/html", NATIVE, None),
    ("image/jpeg", NATIVE, None),
    ("application/dicom", NATIVE, None),  # one object, but a study was asked for (PS3.18 10.4.4)
    # the requests of a DRIMbox (sheet 50 §4)
    (LOSSLESS_WISH, NATIVE, SV1),  # the highest q that can be had without loss
    (LOSSLESS_WISH, LOSSLESS, JLS),  # accepted as it is stored: not compressed anew for a higher q
    (LOSSLESS_WISH, LOSSY, BASELINE),
    (LOSSY_WISH, LOSSLESS, JLS),  # never a new loss
    (LOSSY_WISH, LOSSY, BASELINE),
    (LOSSY_WISH, NATIVE, SV1),
]


@pytest.mark.req("REQ-DCM-91", "REQ-DCM-98")
@pytest.mark.parametrize(("header", "kept", "expected"), OBJECTS)
def test_objects_come_in_the_syntax_that_is_asked_for_or_not_at_all(header, kept, expected) -> None:
    chosen = choose(parse(header), of_objects(**kept, single=False))
    assert (chosen.transfer_syntax if chosen else None) == expected
    assert chosen is None or chosen.multipart


SINGLES = [
    ("application/dicom", NATIVE, (False, EXPLICIT_LE)),
    ("application/dicom; transfer-syntax=*", LOSSLESS, (False, JLS)),
    ("application/*", LOSSLESS, (False, EXPLICIT_LE)),
    ("*/*", LOSSLESS, (True, EXPLICIT_LE)),
    ("multipart/related; type=application/dicom", LOSSLESS, (True, EXPLICIT_LE)),
    ("application/dicom, multipart/related; type=application/dicom; q=0.9", LOSSLESS, (False, EXPLICIT_LE)),
]


@pytest.mark.req("REQ-DCM-91")
@pytest.mark.parametrize(("header", "kept", "expected"), SINGLES)
def test_one_instance_may_come_without_multipart(header, kept, expected) -> None:
    chosen = choose(parse(header), of_objects(**kept, single=True))
    assert chosen is not None
    assert (chosen.multipart, chosen.transfer_syntax) == expected


R = 'multipart/related; type="{}"'
FRAMES = [
    # header, stored, decodable, lossy → media type, transfer syntax
    (None, EXPLICIT_LE, True, False, ("application/octet-stream", EXPLICIT_LE)),
    ("*/*", IMPLICIT, True, False, ("application/octet-stream", EXPLICIT_LE)),
    (R.format("application/octet-stream"), EXPLICIT_LE, True, False, ("application/octet-stream", EXPLICIT_LE)),
    (
        R.format("application/octet-stream") + "; transfer-syntax=*",
        IMPLICIT,
        True,
        False,
        ("application/octet-stream", EXPLICIT_LE),
    ),
    # compressed on the way out, for whoever names it
    (R.format("image/jls"), EXPLICIT_LE, True, False, ("image/jls", JLS)),
    (R.format("image/x-jls"), IMPLICIT, True, False, ("image/jls", JLS)),
    (R.format("image/jp2"), EXPLICIT_LE, True, False, ("image/jp2", J2K)),
    (R.format("image/jp2"), JLS, True, False, ("image/jp2", J2K)),
    (R.format("image/jpeg"), EXPLICIT_LE, True, False, ("image/jpeg", SV1)),  # Table 8.7.3-5: its default is .70
    (R.format("image/dicom-rle"), EXPLICIT_LE, True, False, ("image/dicom-rle", RLE)),
    (R.format("image/*"), EXPLICIT_LE, True, False, ("image/jls", JLS)),
    (R.format("*/*") + f"; transfer-syntax={J2K}", EXPLICIT_LE, True, False, ("image/jp2", J2K)),
    (R.format("application/octet-stream") + f"; transfer-syntax={J2K}", EXPLICIT_LE, True, False, None),
    (R.format("image/jpeg") + f"; transfer-syntax={BASELINE}", EXPLICIT_LE, True, False, None),  # never a new loss
    (R.format("image/jphc"), EXPLICIT_LE, True, False, None),  # no encoder
    (R.format("image/jls"), BASELINE, True, True, None),  # lossy: as stored, or decoded
    (R.format("image/jls"), MPEG4, False, True, None),
    (R.format("image/jp2") + ", " + R.format("image/jls") + "; q=0.1", JLS, True, False, ("image/jls", JLS)),
    ("*/*", JLS, True, False, ("application/octet-stream", EXPLICIT_LE)),
    (R.format("application/octet-stream"), JLS, True, False, ("application/octet-stream", EXPLICIT_LE)),
    (R.format("application/octet-stream") + "; transfer-syntax=*", JLS, True, False, ("application/octet-stream", JLS)),
    (R.format("*/*") + "; transfer-syntax=*", JLS, True, False, ("image/jls", JLS)),
    ("*/*; transfer-syntax=*", JLS, True, False, ("image/jls", JLS)),
    (R.format("image/jls"), JLS, True, False, ("image/jls", JLS)),
    (R.format("image/x-jls"), JLS, True, False, ("image/jls", JLS)),
    (R.format("image/jls") + f"; transfer-syntax={JLS}", JLS, True, False, ("image/jls", JLS)),
    (R.format("image/*"), JLS, True, False, ("image/jls", JLS)),
    (R.format("image/dicom-rle"), RLE, True, False, ("image/dicom-rle", RLE)),
    (R.format("image/x-dicom-rle"), RLE, True, False, ("image/dicom-rle", RLE)),
    (R.format("image/jp2"), J2K, True, False, ("image/jp2", J2K)),
    (R.format("image/jphc"), HTJ2K, False, False, ("image/jphc", HTJ2K)),
    (R.format("image/jpeg"), SV1, True, False, ("image/jpeg", SV1)),
    ("*/*", HTJ2K, False, False, ("image/jphc", HTJ2K)),  # no decoder: as stored is all there is
    ("*/*", BASELINE, True, True, ("image/jpeg", BASELINE)),  # lossy: as stored
    (R.format("image/jpeg"), BASELINE, True, True, ("image/jpeg", BASELINE)),
    (R.format("application/octet-stream"), BASELINE, True, True, ("application/octet-stream", EXPLICIT_LE)),
    (R.format("application/octet-stream"), MPEG4, False, True, ("application/octet-stream", MPEG4)),
    (R.format("video/mp4"), MPEG4, False, True, ("video/mp4", MPEG4)),
    ("image/jls; q=0.3, " + R.format("application/octet-stream") + "; q=0.2", JLS, True, False, None),
    (R.format("image/jls") + "; q=0.3, " + R.format("application/octet-stream") + "; q=0.2", JLS, True, False,
     ("image/jls", JLS)),
]  # fmt: skip


@pytest.mark.req("REQ-DCM-91")
@pytest.mark.parametrize(("header", "stored", "decodable", "lossy", "expected"), FRAMES)
def test_frames_come_under_the_media_type_that_is_asked_for(header, stored, decodable, lossy, expected) -> None:
    chosen = choose(parse(header), of_frames(stored, decodable=decodable, lossy=lossy, single=False))
    if header and header.startswith("image/jls; q=0.3"):  # single part for several frames: only the other one counts
        assert chosen is not None
        assert chosen.media_type == "application/octet-stream"
    else:
        assert (chosen and (chosen.media_type, chosen.transfer_syntax)) == expected


def test_one_frame_may_come_without_multipart() -> None:
    chosen = choose(parse("image/jls"), of_frames(JLS, decodable=True, lossy=False, single=True))
    assert chosen is not None
    assert (chosen.media_type, chosen.multipart) == ("image/jls", False)


@pytest.mark.req("REQ-DCM-91")
@pytest.mark.parametrize(
    ("header", "offers", "expected"),
    [
        (None, METADATA, "application/dicom+json"),
        ("application/json", METADATA, "application/dicom+json"),
        ("application/dicom+json", METADATA, "application/dicom+json"),
        ("application/*; q=0.2", METADATA, "application/dicom+json"),
        ('multipart/related; type="application/dicom+xml"', METADATA, "application/dicom+xml"),
        ('multipart/related; type="application/dicom+xml"; q=0.1, application/dicom+json; q=0.2', METADATA,
         "application/dicom+json"),
        ("application/dicom+xml", METADATA, None),  # each instance is a part
        ("application/json", CAPABILITIES, "application/json"),
        ("*/*", CAPABILITIES, "application/vnd.sun.wadl+xml"),
        (None, RENDERED, "image/jpeg"),
        ("image/*", RENDERED, "image/jpeg"),
        ("image/png", RENDERED, "image/png"),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", RENDERED, "image/jpeg"),
        ("image/png, image/jpeg; q=0.9", RENDERED, "image/png"),
        ("image/gif", RENDERED, None),
    ],
)  # fmt: skip
def test_metadata_and_rendered_images(header, offers, expected) -> None:
    chosen = choose(parse(header), offers)
    assert (chosen and chosen.media_type) == expected


@pytest.mark.req("REQ-DCM-91")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("accept=image/png", "image/png"),
        ("limit=3&accept=image%2Fpng", "image/png"),
        ("accept=image/gif", "image/jpeg"),  # not supported: the header decides (PS3.18 8.7.8.1)
        ("accept=image/gif,image/png;q=0.1", "image/png"),
        ("accept=", "image/jpeg"),
        ("", "image/jpeg"),
    ],
)
def test_the_accept_query_parameter_comes_before_the_header(query, expected) -> None:
    assert wish("image/jpeg", query).demand(RENDERED).media_type == expected


def test_a_plus_in_the_accept_query_parameter_stays_a_plus() -> None:
    assert wish("text/html", "accept=application/dicom+json").demand(METADATA) is METADATA[0]


@pytest.mark.parametrize("header", ["dicom", "a/b/c", "application/dicom; q=x", "*/*; q=2", "*/*; q=-1", "/", "é/x"])
def test_what_is_no_media_range_is_said(header) -> None:
    with pytest.raises(InvalidRequest):
        parse(header)


def test_not_acceptable_names_what_there_is() -> None:
    with pytest.raises(
        NotAcceptable, match=re.escape(f'multipart/related; type="application/dicom"; transfer-syntax={JLS}')
    ):
        wish("text/plain", "").demand(of_objects(**LOSSLESS, single=False))


@given(st.sampled_from([LOSSLESS, LOSSY, NATIVE]), st.booleans())
def test_asking_for_exactly_an_offer_gives_that_offer(kept, single) -> None:
    offers = of_objects(**kept, single=single)
    for offer in offers:
        assert choose(parse(content_type(offer)), offers) == offer


@pytest.mark.req("REQ-DCM-96")
@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("gzip, deflate, br", True), ("GZIP ; Q=0.001", True), ("x-gzip", True), ("*", True), ("*;q=0, gzip", True),
        ("", False), ("br", False), ("gzip;q=0", False), ("gzip; q=0.000, *", False), ("*;q=0", False),
        ("gzipped", False), ("identity;q=1, *;q=0", False),
    ],
)  # fmt: skip
def test_gzip_is_for_whoever_takes_it(header: str, taken: bool) -> None:
    assert takes_gzip(header) is taken


@given(st.text(max_size=200))
def test_any_header_is_answered_or_refused_cleanly(header) -> None:
    offers = (Representation("application/dicom", EXPLICIT_LE, True, stored=True), *RENDERED)
    try:
        chosen = choose(parse(header), offers)
    except InvalidRequest:
        return
    assert chosen is None or chosen in offers
