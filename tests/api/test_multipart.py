"""multipart/related, read and written."""

from __future__ import annotations

from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.multipart import Part, Reader, boundary_of, media_type, new_boundary, related
from archive.errors import InvalidRequest, Unsupported


class Collect:
    """What a reader found."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[str, str], bytes]] = []
        self.complete = 0

    def begin(self, headers: dict[str, str]) -> None:
        self.parts.append((headers, b""))

    def data(self, data: object) -> None:
        headers, content = self.parts[-1]
        self.parts[-1] = (headers, content + bytes(data))  # type: ignore[call-overload]

    def end(self) -> None:
        self.complete += 1


def read(body: bytes, boundary: str = "B", *, step: int = 7) -> Collect:
    found = Collect()
    reader = Reader(boundary, found)
    for start in range(0, len(body), step):
        reader.feed(body[start : start + step])
    reader.finish()
    return found


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 400))
def test_what_is_written_is_read_back(contents: list[bytes], step: int) -> None:
    boundary = new_boundary()
    body = b"".join(related((Part("application/dicom", iter([content])) for content in contents), boundary))
    found = read(body, boundary, step=step)
    assert [content for _, content in found.parts] == contents
    assert found.complete == len(contents)
    assert all(headers == {"content-type": "application/dicom"} for headers, _ in found.parts)


def test_what_is_written_is_what_mail_readers_understand() -> None:
    parts = [
        Part("image/jls; transfer-syntax=1.2", iter([b"\xff\xd8", b"\r\nx"]), "/a/b"),
        Part("text/plain", iter([])),
    ]
    body = b"".join(related(parts, "B"))
    message = message_from_bytes(b'Content-Type: multipart/related; boundary="B"\r\n\r\n' + body)
    first, second = message.get_payload()  # type: ignore[misc]
    assert (first["content-type"], first["content-location"]) == ("image/jls; transfer-syntax=1.2", "/a/b")
    assert second.get_content_type() == "text/plain"
    assert body.endswith(b"\r\n--B--\r\n")


def test_a_preamble_of_line_ends_an_epilogue_and_padding_are_tolerated() -> None:
    body = b"\r\n--B\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--B  \r\n\r\ndef\r\n--B--\r\nthe end"
    assert [content for _, content in read(body).parts] == [b"abc", b"def"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B",
        b"--B\r\nContent-Type: application/dicom\r\n\r\nabc",
        b"--B\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--B",
        b"--B\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--B\r\n",
        b"--B\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--B-",
        b"--B\r\nContent-Type",
        b"this is a preamble\r\n--B\r\n\r\nabc\r\n--B--\r\n",
        b"--C\r\n\r\nabc\r\n--C--\r\n",
        b"--B\nContent-Type: application/dicom\n\nabc\n--B--\n",
        b"--B\r\nContent Type: x\r\n\r\nabc\r\n--B--\r\n",
        b"--B\r\nX: " + b"x" * 100_000 + b"\r\n\r\nabc\r\n--B--\r\n",
    ],
)
def test_a_body_that_is_cut_short_or_malformed_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(body)


@given(st.binary(max_size=500))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        read(b"--B\r\n" + body)
    except InvalidRequest:
        return


def test_the_boundary_is_demanded_and_the_type_of_the_parts_checked() -> None:
    kind, parameters = media_type('Multipart/Related; Type="application/dicom"; boundary="a b"; start=<1>')
    assert kind == "multipart/related"
    assert boundary_of(parameters, "application/dicom") == "a b"
    with pytest.raises(InvalidRequest):
        boundary_of({"type": "application/dicom"}, "application/dicom")
    with pytest.raises(Unsupported):
        boundary_of({"type": "application/dicom+json", "boundary": "B"}, "application/dicom")
    with pytest.raises(InvalidRequest):
        Reader("é" * 300, Collect())
