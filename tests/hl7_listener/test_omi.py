"""What a DRIMbox is told of a study that changed after its manifest (REQ-DRIM-05, 06): OMI^O23, heard by a peer that is
written byte by byte, and read again by our own parser."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import delete, update

from archive import jobs, manifests, sharing
from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.duties import Duties
from archive.errors import Busy, InvalidRequest, NotFound
from archive.jobs import Job
from archive.rejecting import reject
from archive.schema import job, sharing_told
from hl7_listener import omi, serve
from hl7_listener.message import parse
from hl7_listener.structure import check
from retention.tick import tick
from tests.builders import new_uid
from tests.certificates import Authority
from tests.hl7_listener.saying import AUTHORITY, ISSUER, NIR_TEST, ins, order, pid, say, store
from tests.hl7_listener.test_consumer import Script, fields_of, framed, peer
from tests.hl7_listener.test_serve import listening, on_sqlite
from tests.retention.life import put_clock

INS = "285073599990118"
STUDY = "2.25.1602001"
NAMES = "DURAND^Anne^^^^^D~DUPONT^ANNE^ANNE MARIE LOUISE^^^^L"
CALLED = {"host": "127.0.0.1", "tls": False, "application": "DRIMBOX", "facility": "CABINET"}
WHO = Actor(user="anne", source="127.0.0.1", door=Door.API, may=EVERYTHING)
ANSWER = "MSH|^~\\&|DRIMBOX|CABINET|MINIPACS||20260105083000||ACK^O23^ACK|A1|P|2.5.1"
TRAITS = {"p3": ins(INS), "p7": "19850712", "p8": "F", "p11": "^^RENNES^^^FRA^BDL^^35999", "p32": "VALI"}
MINE = {"PatientID": "R1", "IssuerOfPatientID": ISSUER, "AccessionNumber": "A1001", "StudyInstanceUID": STUDY}


class DrimBox:
    """What it heard; `code` is what it answers."""

    def __init__(self, code: str = "AA") -> None:
        self.code = code
        self.heard: list[bytes] = []

    def script(self) -> Script:
        def answer(message: bytes) -> list[bytes]:
            self.heard.append(message)
            return [framed(ANSWER, f"MSA|{self.code}|{fields_of(message)['MSH'][9]}")]

        return answer


@pytest.fixture
def box() -> DrimBox:
    return DrimBox()


@pytest.fixture
def port(box: DrimBox) -> Iterator[int]:
    with peer(box.script()) as listening:
        yield listening


def told_to(settings: Settings, **omi: Any) -> Settings:
    return Settings.model_validate(
        {
            **settings.model_dump(),
            "test_mode": True,
            "hl7": {"authorities": [AUTHORITY]},
            "identity": {"ins_oids": [NIR_TEST]},
            "site": {"finess": "350000001"},
            "sharing": {
                "omi": {"host": "127.0.0.1", "tls": False, "application": "DRIMBOX", "facility": "CABINET", **omi}
            },
        }
    )


@pytest.fixture
def archive(settings: Settings, port: int) -> Iterator[Archive]:
    with open_archive(told_to(settings, port=port), process="test") as opened:
        yield opened


@pytest.fixture
def published(archive: Archive, actor: Actor) -> Archive:
    """An ordered study of somebody with an INS, with an image and a manifest; nothing is owed of it."""
    return publish(archive, actor)


def publish(archive: Archive, actor: Actor) -> Archive:
    say(archive, "A28", pid("R1", NAMES, **TRAITS))
    obr = "OBR|1|PL1^RIS|FI1|ZBTHOR^Scanner thoracique^LOCAL" + "|" * 14 + "A1001|RP1|SPS1"
    order(archive, pid("R1", NAMES), "ORC|NW|PL1^RIS|FI1||SC", obr, f"ZDS|{STUDY}^P^Application^DICOM")
    store(archive, actor, **MINE, SOPInstanceUID=new_uid("first"))
    manifests.make(archive, STUDY, base_url="https://pacs.example/dicom-web", actor=WHO)
    sharing.tell_due(archive)
    archive.commit.run(lambda conn: conn.execute(delete(job)))
    return archive


def owed(archive: Archive) -> list[Job]:
    """What is owed once the changes are looked at."""
    while sharing.tell_due(archive):
        pass
    with archive.reading() as conn:
        return jobs.list_jobs(conn, kind=sharing.OMI, limit=10)


def now(archive: Archive) -> None:
    archive.commit.run(lambda conn: conn.execute(update(job).values(due_at=archive.real_clock())))


def adds(archive: Archive, actor: Actor) -> None:
    store(archive, actor, **MINE, SOPInstanceUID=new_uid("second"))


def rejects(archive: Archive, actor: Actor) -> None:
    reject(archive, STUDY, code="113001", reason="bougé", actor=WHO)


def corrects_the_patient(archive: Archive, actor: Actor) -> None:
    say(archive, "A31", pid("R1", NAMES.replace("Anne", "Anna"), **{**TRAITS, "p7": "19850713"}))


def corrects_the_order(archive: Archive, actor: Actor) -> None:
    obr = "OBR|1|PL1^RIS|FI1|ZBTHOR^Scanner thoracique^LOCAL" + "|" * 14 + "A2002|RP1|SPS1"
    order(archive, pid("R1", NAMES), "ORC|XO|PL1^RIS|FI1||SC", obr, f"ZDS|{STUDY}^P^Application^DICOM")


@on_sqlite
@pytest.mark.req("REQ-DRIM-05", "REQ-HL7-99")
@pytest.mark.parametrize("change", [adds, rejects, corrects_the_patient, corrects_the_order])
def test_each_change_after_the_manifest_is_told_once(
    published: Archive, actor: Actor, box: DrimBox, change: Callable[[Archive, Actor], None]
) -> None:
    assert owed(published) == []
    change(published, actor)
    [one] = owed(published)
    assert one.payload == {"study": STUDY}
    assert owed(published) == [one], "looked at again, it is not owed again"
    now(published)
    with closing(Duties(published, omi.DUTIES, look_seconds=0.05)):
        assert jobs.wait(published, one.id, seconds=10).state == "done"
    [message] = box.heard
    assert fields_of(message)["IPC"][3] == STUDY


@pytest.mark.req("REQ-DRIM-06")
def test_the_message_says_what_the_drimbox_needs_and_is_read_back(
    published: Archive, actor: Actor, box: DrimBox
) -> None:
    adds(published, actor)
    [one] = owed(published)
    assert omi.tell(published, one) == {"answer": "AA"}
    [raw] = box.heard
    said = fields_of(raw)
    assert list(said) == ["MSH", "PID", "PV1", "ORC", "TQ1", "OBR", "OBX", "IPC"]
    assert said["MSH"][2:6] == ["MINIPACS", "350000001", "DRIMBOX", "CABINET"]
    assert (said["MSH"][8], said["MSH"][11], said["MSH"][17]) == ("OMI^O23^OMI_O23", "2.5.1", "UNICODE UTF-8")
    assert f"{INS}^^^ASIP-SANTE-INS-NIR&{NIR_TEST}&ISO^INS" in said["PID"][3].split("~")
    assert said["PID"][3].startswith(f"R1^^^{ISSUER}")
    assert (said["PID"][7], said["PID"][8], said["PID"][32]) == ("19850712", "F", "VALI")
    assert (said["ORC"][1], said["ORC"][5]) == ("NW", "SC")
    assert said["ORC"][2].startswith("PL1")
    assert said["OBR"][4].startswith("ZBTHOR^Scanner thoracique")
    assert said["OBX"][5] == "Modification Examen Imagerie"
    assert said["IPC"][1].split("^")[0] == "A1001"
    assert said["IPC"][2:6] == ["RP1", STUDY, said["IPC"][4], "CT"]
    assert said["IPC"][9] == "MINIPACS"
    message = parse(raw[1:-2], default_charset="8859/15")
    check(message)
    assert (message.type, message.event) == ("OMI", "O23")


@on_sqlite
@pytest.mark.req("REQ-DRIM-05")
def test_what_was_never_shared_is_told_to_nobody(published: Archive, actor: Actor) -> None:
    store(published, actor, PatientID="R1", IssuerOfPatientID=ISSUER, AccessionNumber="A7", SOPInstanceUID=new_uid())
    assert owed(published) == []


@on_sqlite
@pytest.mark.req("REQ-DRIM-05")
def test_the_listener_looks_and_tells_by_itself(
    published: Archive, actor: Actor, box: DrimBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "SHARING_SECONDS", 0.1)
    monkeypatch.setattr(sharing, "QUIET", timedelta(0))
    with listening(published):
        adds(published, actor)
        until = monotonic() + 10
        while not box.heard and monotonic() < until:
            sleep(0.05)
    assert [fields_of(one)["IPC"][3] for one in box.heard] == [STUDY]


@on_sqlite
@pytest.mark.req("REQ-DRIM-05")
def test_the_end_of_its_retention_is_told(archive: Archive, actor: Actor, box: DrimBox) -> None:
    put_clock(archive, "2026-01-05T09:00:00")
    publish(archive, actor)
    put_clock(archive, "2031-01-06T09:00:00")
    assert tick(archive).announced == 1
    assert owed(archive) == [], "nothing is gone yet"
    put_clock(archive, "2031-02-06T09:00:00")
    assert tick(archive).purged == 1
    [one] = owed(archive)
    assert omi.tell(archive, one) == {"answer": "AA"}
    assert fields_of(box.heard[0])["IPC"][3] == STUDY


@on_sqlite
@pytest.mark.req("REQ-DRIM-05", "REQ-DRIM-06")
def test_of_a_study_that_is_gone_its_order_is_told(published: Archive, box: DrimBox) -> None:
    obr = "OBR|1|PL2^RIS|FI2|ZBTHOR^Scanner|" + "|" * 13 + "A3003|RP3|SPS3"
    order(published, pid("R1", NAMES), "ORC|NW|PL2^RIS|FI2||SC", obr, "ZDS|2.25.77^P^Application^DICOM")
    one = jobs.Job(0, sharing.OMI, {"study": "2.25.77"}, "leased", 1, "", None, None, *[published.clock()] * 2, None)
    assert omi.tell(published, one) == {"answer": "AA"}
    said = fields_of(box.heard[0])
    assert (said["IPC"][1].split("^")[0], said["IPC"][3]) == ("A3003", "2.25.77")
    assert INS in said["PID"][3]


@on_sqlite
@pytest.mark.req("REQ-DRIM-05")
def test_a_change_outlives_a_drimbox_that_is_away_and_an_index_made_anew(
    published: Archive, actor: Actor, box: DrimBox
) -> None:
    adds(published, actor)
    [one] = owed(published)
    box.code = "AR"
    with pytest.raises(Busy, match="does not take"):
        omi.tell(published, one)
    box.code = "AE"
    with pytest.raises(InvalidRequest, match="refuses"):
        omi.tell(published, one)
    with pytest.raises(NotFound):
        omi.tell(published, jobs.Job(**{**_fields(one), "payload": {"study": "1.2.3"}}))

    def forget(conn: Any) -> None:
        conn.execute(delete(job))
        conn.execute(delete(sharing_told))

    published.commit.run(forget)
    assert [again.payload for again in owed(published)] == [{"study": STUDY}]


def _fields(one: Job) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


@on_sqlite
@pytest.mark.req("REQ-DRIM-11")
def test_beyond_this_machine_the_drimbox_is_called_over_tls(settings: Settings, authority: Authority) -> None:
    for told, words in (
        ({"host": "10.0.0.7"}, r"sharing\.omi\.tls"),
        ({"host": "10.0.0.7", "tls": True}, r"tls\.ca"),
    ):
        with pytest.raises(ValidationError, match=words):
            told_to(settings, **told)
    box, shown = DrimBox(), authority.issue("drimbox")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.cert, shown.key)
    with peer(box.script(), tls=context) as port:
        secure = told_to(settings.model_copy(update={"tls": authority.settings()}), port=port, tls=True)
        with open_archive(secure, process="test") as archive:
            uid = store(archive, WHO, PatientID="R9", IssuerOfPatientID=ISSUER)
            one = jobs.Job(0, sharing.OMI, {"study": uid}, "leased", 1, "", None, None, *[archive.clock()] * 2, None)
            assert omi.tell(archive, one) == {"answer": "AA"}
    assert len(box.heard) == 1
