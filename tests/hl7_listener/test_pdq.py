"""Patient Demographics Query, supplier (ITI-21), over real MLLP; queries and answers written and read byte by byte."""

from __future__ import annotations

import json
import socket
from base64 import b64decode
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import text, update

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.identity import demographics
from archive.identity.acts import Connection
from archive.identity.restore import restore_patient
from archive.ingest import ingest
from archive.journal import Kind
from archive.schema import audit, fact, patient, patient_identifier, query_pointer
from archive.schema.types import AnyRow
from archive.storage.part10 import Part10
from tests.builders import ct_slice, part10
from tests.hl7_listener.saying import ISSUER, RIS, cx, ins, pid, say, with_ris
from tests.hl7_listener.test_serve import listening, on_sqlite

INS = "285073599990118"
OID = "2.25.171717001"
MSH = "MSH|^~\\&|CONSOLE|SCANNER|PACS|CABINET|20260105083000||{kind}|{id}|P|2.5|||||FRA|{charset}"


class Console:
    """A peer of no library of ours: it writes segments and reads bytes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = 0

    def send(self, *segments: str, kind: str, charset: str = "UNICODE UTF-8", id: str = "") -> list[list[str]]:
        self._number += 1
        lines = [MSH.format(kind=kind, id=id or f"Q{self._number}", charset=charset), *segments]
        raw = "".join(line + "\r" for line in lines).encode()
        with socket.create_connection(("127.0.0.1", self._port), 30) as sock:
            sock.sendall(b"\x0b" + raw + b"\x1c\r")
            received = b""
            while not received.endswith(b"\x1c\r"):
                piece = sock.recv(4096)
                assert piece, received
                received += piece
        assert received[:1] == b"\x0b"
        return [line.split("|") for line in received[1:-2].decode().rstrip("\r").split("\r")]

    def ask(
        self, *parameters: str, rcp: str = "RCP|I", domains: str = "", more: tuple[str, ...] = (), **said: str
    ) -> list[list[str]]:
        qpd = f"QPD|IHE PDQ Query|T1|{'~'.join(parameters)}|||||{domains}".rstrip("|")
        return self.send(qpd, rcp, *more, kind="QBP^Q22^QBP_Q21", **said)


def one(answer: list[list[str]], name: str) -> list[str]:
    (found,) = [segment for segment in answer if segment[0] == name]
    return found


def patients(answer: list[list[str]]) -> list[str]:
    return [segment[3].split("^")[0] for segment in answer if segment[0] == "PID"]


def refusal(answer: list[list[str]]) -> tuple[str, str, str, str]:
    """MSA-1, QAK-2, ERR-3 and ERR-2."""
    error = one(answer, "ERR")
    return one(answer, "MSA")[1], one(answer, "QAK")[2], error[3].split("^")[0], error[2]


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(with_ris(settings), process="test") as opened:
        names = "KERVÉADOU D'ARVOR^Anne-Marie^^^Mme^^D~LE GOFF^ANNE-MARIE^ANNE-MARIE LOUISE^^Mme^^L"
        fields = {"p3": f"{ins(INS)}~H77^^^HOPITAL&2.25.7&ISO^PI~199^^^SECU&1.2.250.1.213.1.4.8&ISO^NH"}
        fields |= {"p7": "19850712", "p8": "F", "p11": "12 rue^^SAINT-MALO^^35400^FRA^H~^^RENNES^^^FRA^BDL^^35999"}
        fields |= {"p13": "^PRN^CP^^^^^^^^^0600000001", "p32": "VALI"}
        say(opened, "A28", pid("R1", names, **fields), "ZFA|ACTIF")
        say(opened, "A28", pid("R2", "LEFÈVRE^Anaïs^^^^^L", p7="1985", p8="F"))
        say(opened, "A28", pid("R3", "LEFEBVRE^Jean^^^^^L", p7="19700101", p8="M", p11="^^Saint Malo^^^^H"))
        yield opened


@pytest.fixture
def console(archive: Archive) -> Iterator[Console]:
    with listening(archive) as (port, _stop):
        yield Console(port)


@pytest.mark.req("REQ-HL7-90", "REQ-IHE-04")
def test_a_query_is_answered_with_the_patient_as_a_pid(console: Console) -> None:
    answer = console.ask("@PID.5.1.1^le goff", "@PID.5.2^anne-marie")
    msh = one(answer, "MSH")
    assert (msh[2:6], msh[8]) == (["PACS", "CABINET", "CONSOLE", "SCANNER"], "RSP^K22^RSP_K21")
    assert [segment[0] for segment in answer] == ["MSH", "MSA", "QAK", "QPD", "PID"]
    assert one(answer, "MSA")[1:3] == ["AA", "Q1"]
    assert one(answer, "QAK")[1:] == ["T1", "OK", "IHE PDQ Query", "1", "1"]
    assert one(answer, "QPD")[1:] == ["IHE PDQ Query", "T1", "@PID.5.1.1^le goff~@PID.5.2^anne-marie"]
    found = one(answer, "PID")
    assert found[3].split("~") == [
        f"R1^^^{ISSUER}&{OID}&ISO^PI",
        "H77^^^HOPITAL^PI",  # an authority that no setting names keeps its namespace alone
        f"{INS}^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS",
    ], "the number of the health insurance is told to nobody"
    assert set(found[5].split("~")) == {
        "KERVÉADOU D'ARVOR^Anne-Marie^^^Mme^^D",
        "LE GOFF^ANNE-MARIE^ANNE-MARIE LOUISE^^Mme^^L",
    }
    assert (found[7], found[8], found[32]) == ("19850712", "F", "VALI")
    assert found[11] == "12 rue^^SAINT-MALO^^35400^FRA^H~^^RENNES^^^FRA^BDL^^35999"
    assert found[13] == "^PRN^CP^^^^^^^^^0600000001"


MEANT = [
    (["@PID.5.1.1^LEFEVRE"], ["R2"]),
    (["@PID.5.1.1^lef*"], ["R2", "R3"]),
    (["@PID.5.1.1^LEF?VRE"], ["R2"]),
    (["@PID.5.1.1^*vre", "@PID.8^M"], ["R3"]),
    (["@PID.5.1.1^kerveadou d'arvor"], ["R1"]),  # the used name
    (["@PID.5.2^LOUISE"], ["R1"]),  # a further given name
    (["@PID.5.2^ANAIS"], ["R2"]),
    (["@PID.5.1.1^*", "@PID.5.2^J*"], ["R3"]),
    (["@PID.5.1.1^**", "@PID.5.2^*"], ["R1", "R2", "R3"]),
    (["@PID.5.1.1^%_!"], []),
    (["@PID.5.1.1^LEFEVRE", "@PID.5.2^JEAN"], []),
    (["@PID.7^19850712"], ["R1"]),
    (["@PID.7^1985"], ["R1", "R2"]),  # who was born on some day of that year
    (["@PID.7^198507"], ["R1"]),
    (["@PID.8^F"], ["R1", "R2"]),
    (["@PID.8^U"], []),
    (["@PID.11.3^saint-malo"], ["R1", "R3"]),
    (["@PID.11.3^RENNES"], []),  # a place of birth is no address
    (["@PID.13^06 00 00 00 01"], ["R1"]),
    (["@PID.3.1^R1"], ["R1"]),
    (["@PID.3.1^R1", f"@PID.3.4.2^{OID}"], ["R1"]),
    (["@PID.3.1^R1", "@PID.3.4.1^ELSEWHERE"], []),
    (["@PID.3.1^H77", "@PID.3.4.1^HOPITAL"], ["R1"]),
    (["@PID.3.1^199"], []),  # NH, whatever its OID
    ([f"@PID.3.1^{INS}"], ["R1"]),
    ([f"@PID.3.1^{INS}", "@PID.3.5^INS"], ["R1"]),
    (["@PID.5.1.1^ZZZZ"], []),
]


@pytest.mark.req("REQ-HL7-91")
@on_sqlite
def test_what_is_asked_finds_whom_it_means(console: Console) -> None:
    for parameters, expected in MEANT:
        answer = console.ask(*parameters)
        status = (one(answer, "MSA")[1], one(answer, "QAK")[2])
        assert (status, patients(answer)) == (("AA", "OK" if expected else "NF"), expected), parameters


@pytest.mark.req("REQ-HL7-91")
def test_names_identifiers_and_dates_are_found_on_both_databases(archive: Archive, console: Console) -> None:
    for asked, expected in (
        ("@PID.5.1.1^LEF*", ["R2", "R3"]), ("@PID.5.1.1^KERV*", ["R1"]), ("@PID.3.1^H77", ["R1"]),
        ("@PID.7^1985", ["R1", "R2"]), ("@PID.8^M", ["R3"]), ("@PID.11.3^SAINT*", ["R1", "R3"]),
    ):  # fmt: skip
        assert patients(console.ask(asked)) == expected, asked


@pytest.mark.req("REQ-HL7-91", "REQ-HL7-64")
def test_an_ins_that_was_withdrawn_is_neither_found_nor_told(archive: Archive, console: Console) -> None:
    say(archive, "A31", pid("R1", "LE GOFF^ANNE-MARIE^^^^^L", p32="PROV"))
    assert patients(console.ask(f"@PID.3.1^{INS}")) == []
    assert INS not in one(console.ask("@PID.3.1^R1"), "PID")[3]


@pytest.mark.req("REQ-HL7-91")
def test_an_old_identifier_finds_the_survivor_and_a_tombstone_is_never_told(archive: Archive, console: Console) -> None:
    say(archive, "A40", pid("R1", "LE GOFF^ANNE-MARIE^^^^^L"), f"MRG|{cx('R2')}")
    assert patients(console.ask("@PID.3.1^R2", f"@PID.3.4.1^{ISSUER}")) == ["R1"]
    assert patients(console.ask("@PID.5.1.1^LEFEVRE")) == []


@pytest.mark.req("REQ-HL7-90")
def test_the_account_of_a_visit_finds_whose_it_is(archive: Archive, console: Console) -> None:
    for ipp, account, visit in (("R1", "D1", "V1"), ("R1", "D2", "V2"), ("R3", "D3", "V3")):
        pv1 = "PV1||O|UF1" + "|" * 16 + f"{visit}^^^{ISSUER}^VN"
        say(archive, "A04", pid(ipp, p18=f"{account}^^^{ISSUER}^AN"), pv1)
    assert patients(console.ask("@PID.18^D1")) == ["R1"]
    assert patients(console.ask("@PID.18.1^D3")) == ["R3"]
    assert patients(console.ask("@PID.18^D1", "@PID.8^F")) == ["R1"]
    assert patients(console.ask("@PID.18^D1", "@PID.3.1^R3")) == []
    assert [one(console.ask(f"@PID.18^{number}"), "QAK")[2] for number in ("V1", "D")] == ["NF", "NF"]
    assert refusal(console.ask(f"@PID.18^{'D' * 400}"))[2:] == ("102", "QPD^1^3")
    say(archive, "A40", pid("R2"), f"MRG|{cx('R3')}")
    assert patients(console.ask("@PID.18^D3")) == ["R2"], "a visit moves with a merge"


@pytest.mark.req("REQ-HL7-91")
@on_sqlite
def test_a_domain_limits_the_identifiers_and_the_patients(console: Console) -> None:
    for domain in (f"^^^{ISSUER}", f"^^^&{OID}&ISO", f"^^^{ISSUER}&{OID}&ISO"):
        assert one(console.ask("@PID.3.1^R1", domains=domain), "PID")[3] == f"R1^^^{ISSUER}&{OID}&ISO^PI"
    answer = console.ask("@PID.8^F", domains="^^^HOPITAL")
    assert [segment[3] for segment in answer if segment[0] == "PID"] == ["H77^^^HOPITAL^PI"], "R2 has none of theirs"
    answer = console.ask("@PID.8^F", domains=f"^^^{ISSUER}~^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO")
    assert [len(segment[3].split("~")) for segment in answer if segment[0] == "PID"] == [2, 1]
    answer = console.ask("@PID.8^F", domains=f"^^^{ISSUER}~^^^NOBODY&2.25.404&ISO")
    assert refusal(answer) == ("AE", "AE", "204", "QPD^1^8^2")
    assert patients(answer) == []
    answer = console.ask("@PID.8^F", domains=f"^^^ONE~^^^{ISSUER}~^^^&2.25.404&ISO")
    assert [(error[2], error[3][:4]) for error in answer if error[0] == "ERR"] == [
        ("QPD^1^8^1", "204^"),
        ("QPD^1^8^3", "204^"),
    ]


REFUSED = [
    (["RCP|I"], "100", "QPD^1"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F"], "100", "RCP^1"),
    (["QPD||T1|@PID.8^F", "RCP|I"], "101", "QPD^1^1"),
    (["QPD|IHE PDQ Query||@PID.8^F", "RCP|I"], "101", "QPD^1^2"),
    (["QPD|IHE PDQ Query|T1", "RCP|I"], "101", "QPD^1^3"),
    (["QPD|IHE PDQ Query|T1|@PID.8^", "RCP|I"], "101", "QPD^1^3"),
    (["QPD|IHE PDQ Query|T1|@PID.8^X", "RCP|I"], "103", "QPD^1^3^1"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F~@PID.10^X", "RCP|I"], "103", "QPD^1^3^2"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F~@PID.7^19850230", "RCP|I"], "102", "QPD^1^3^2"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F~@PID.8^M", "RCP|I"], "102", "QPD^1^3^2"),
    (["QPD|IHE PDQ Query|T1|@PID.3.4.1^X", "RCP|I"], "101", "QPD^1^3"),
    ([f"QPD|IHE PDQ Query|T1|@PID.5.1.1^{'X' * 400}", "RCP|I"], "102", "QPD^1^3"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F", "RCP|D"], "103", "RCP^1^1"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F", "RCP|I|0^RD"], "102", "RCP^1^2^1^1"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F", "RCP|I|5^LI"], "103", "RCP^1^2^1^2"),
    (["QPD|IHE PDQ Query|T1|@PID.8^F", "RCP|I", "DSC|nothing|I"], "204", "DSC^1^1"),
]


@on_sqlite
def test_a_query_that_cannot_be_answered_says_where(console: Console, archive: Archive) -> None:
    for segments, code, place in REFUSED:
        answer = console.send(*segments, kind="QBP^Q22^QBP_Q21")
        assert one(answer, "MSH")[8] == "RSP^K22^RSP_K21", segments
        assert refusal(answer) == ("AE", "AE", code, place), segments
        row = queries(archive)[-1]
        assert (row.outcome, f'"reason":"{code} ' in row.detail) == (8, True), segments
    assert patients(console.ask("@PID.3.1^R3")) == ["R3"], "the next one is answered"


@pytest.mark.req("REQ-HL7-92")
def test_an_answer_goes_on_where_its_pointer_says_until_it_ends(archive: Archive, console: Console) -> None:
    for number in range(4, 9):
        say(archive, "A28", pid(f"R{number}", "AUTRE^A^^^^^L", p8="F"))
    found, pointers, more = [], [], ()
    while True:
        answer = console.ask("@PID.8^F", rcp="RCP|I|3^RD", more=more)
        if not found:  # whoever comes later is told, and changes nothing of how many there were
            say(archive, "A28", pid("R9", "AUTRE^A^^^^^L", p8="F"))
        found += patients(answer)
        assert one(answer, "QAK")[4] == "7"
        if not any(segment[0] == "DSC" for segment in answer):
            break
        dsc = one(answer, "DSC")
        assert dsc[2] == "I"
        pointers.append(dsc[1])
        more = (f"DSC|{dsc[1]}|I",)
    assert found == ["R1", "R2", "R4", "R5", "R6", "R7", "R8", "R9"]
    assert len(set(pointers)) == 2
    answer = console.ask("@PID.8^M", rcp="RCP|I|3^RD", more=more)
    assert refusal(answer)[2:] == ("204", "DSC^1^1"), "a pointer continues its own query alone"


@pytest.mark.req("REQ-HL7-92")
@on_sqlite
def test_a_pointer_ends_with_its_time_and_when_the_query_is_cancelled(archive: Archive, console: Console) -> None:
    def first() -> str:
        return one(console.ask("@PID.8^F", rcp="RCP|I|1^RD"), "DSC")[1]

    late = first()
    over = archive.real_clock() - timedelta(seconds=1)
    archive.commit.run(lambda conn: conn.execute(update(query_pointer).values(expires_at=over)))
    answer = console.ask("@PID.8^F", rcp="RCP|I|1^RD", more=(f"DSC|{late}|I",))
    assert refusal(answer) == ("AE", "AE", "204", "DSC^1^1")
    pointer = first()
    answer = console.send("QID|T1|IHE PDQ Query", kind="QCN^J01^QCN_J01")
    assert (one(answer, "MSH")[8], one(answer, "MSA")[1]) == ("ACK^J01^ACK", "AA")
    answer = console.ask("@PID.8^F", rcp="RCP|I|1^RD", more=(f"DSC|{pointer}|I",))
    assert refusal(answer)[2:] == ("204", "DSC^1^1")
    with archive.reading() as conn:
        assert conn.execute(text("SELECT count(*) FROM query_pointer")).scalar() == 0


@pytest.mark.req("REQ-HL7-24")
@on_sqlite
def test_a_query_that_is_sent_again_has_its_answer_again(console: Console) -> None:
    first = console.ask("@PID.5.1.1^LE*", rcp="RCP|I|1^RD", id="SAME")
    again = console.ask("@PID.5.1.1^LE*", rcp="RCP|I|1^RD", id="SAME")
    assert again[1:] == first[1:]
    assert (again[0][8], again[0][17:]) == ("RSP^K22^RSP_K21", first[0][17:])
    assert again[0][9] != first[0][9]


@pytest.mark.req("REQ-HL7-12")
@on_sqlite
def test_what_the_character_set_of_the_query_does_not_hold_is_said_in_utf_8(console: Console) -> None:
    answer = console.ask("@PID.3.1^R2", charset="ASCII")
    assert one(answer, "MSH")[17] == "UNICODE UTF-8"
    assert one(answer, "PID")[5].startswith("LEFÈVRE^Anaïs")
    assert one(console.ask("@PID.3.1^R3", charset="ASCII"), "MSH")[17] == "ASCII"


@pytest.mark.req("REQ-SEC-10")
def test_the_audit_holds_what_was_asked_and_nothing_of_the_answer(archive: Archive, console: Console) -> None:
    console.ask("@PID.5.1.1^LEFEVRE")
    [row] = queries(archive)
    assert (row.action, row.outcome, row.user, row.door) == ("E", 0, "CONSOLE|SCANNER", "hl7")
    detail = json.loads(row.detail)
    assert detail["type"] == "ITI-21"
    assert b64decode(detail["query"]).decode() == "QPD|IHE PDQ Query|T1|@PID.5.1.1^LEFEVRE"
    assert row.patient is None
    assert "R2" not in row.detail


@on_sqlite
def test_only_the_senders_of_the_settings_may_query(settings: Settings) -> None:
    told = with_ris(settings, queries=["RIS|RIVAGES"])
    with (
        open_archive(told, process="test") as archive,
        listening(archive) as (port, _stop),
    ):
        say(archive, "A28", pid("R1"))
        answer = Console(port).ask("@PID.3.1^R1")
        assert refusal(answer) == ("AR", "AR", "207", "MSH^1^3")
        assert [row.outcome for row in queries(archive)] == [8]


@on_sqlite
def test_somebody_whom_only_images_know_is_found_and_nobody_without_an_identifier(
    archive: Archive, console: Console
) -> None:
    for number, identifier in enumerate(("X1", "")):
        ds = ct_slice(PatientID=identifier, PatientName="NOYER^Paul", StudyInstanceUID=f"1.2.{number + 1}")
        file = Part10(archive.hot, at=archive.real_clock())
        file.feed(part10(ds))
        ingest(archive, file.finish(), actor=RIS)
    found = one(console.ask("@PID.5.1.1^NOYER"), "PID")
    assert (found[3].split("^")[0], found[5]) == ("X1", "NOYER^Paul^^^^^L")


def test_facts_alone_make_a_patient_searchable_again(archive: Archive) -> None:
    with archive.reading() as conn:
        facts = conn.execute(fact.select().where(fact.c.kind == Kind.PATIENT)).all()

    def again(conn: Connection) -> None:
        conn.execute(patient_identifier.delete())
        conn.execute(update(patient).values(other_names=None))
        for told in facts:
            restore_patient(conn, told.subject, json.loads(told.body), told.at)

    archive.commit.run(again)
    with archive.reading() as conn:
        for family, identifier in (("kerv*", ""), ("", "H77")):
            wanted = ((demographics.Wanted(identifier),),) if identifier else ()
            asked = demographics.Asked(family=family, identifiers=wanted)
            assert [one.identifiers[0].value for one in demographics.find(conn, asked)] == ["R1"]


def queries(archive: Archive) -> list[AnyRow]:
    with archive.reading() as conn:
        return list(conn.execute(audit.select().where(audit.c.event == "110112").order_by(audit.c.pk)).all())
