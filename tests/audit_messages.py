"""Audit messages in tests: the schema of PS3.15 A.5.1.1 as a judge, and a real rsyslog as a repository."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from tests.certificates import Authority
from tests.conftest import need
from tests.server import free_port

# ITI-20: PRI 85, or 84 for warnings; MSGID; no structured data; XML without byte order mark.
LINE = re.compile(
    r"<8[45]>1 (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (?P<host>[!-~]+) minipacs (?P<chain>[!-~]+) "
    r"IHE\+RFC-3881 - (?P<xml><\?xml .+)"
)


def _values(*values: object) -> str:
    return "<choice>" + "".join(f"<value>{value}</value>" for value in values) + "</choice>"


def _attribute(name: str, content: str = "", *, optional: bool = False) -> str:
    made = f'<attribute name="{name}">{content or "<text/>"}</attribute>'
    return f"<optional>{made}</optional>" if optional else made


def _many(name: str, *content: str, least: str = "zeroOrMore") -> str:
    return f"<{least}><element name='{name}'>{''.join(content) or '<empty/>'}</element></{least}>"


def _one(name: str, *content: str) -> str:
    return f"<element name='{name}'>{''.join(content)}</element>"


_XSD = "<data type='{}'/>".format
_OTHER = (
    _attribute("codeSystemName", _XSD("token"))
    + _attribute("displayName", _XSD("token"), optional=True)
    + _attribute("originalText", _XSD("token"))
)
_CODE = _attribute("csd-code", _XSD("token")) + _OTHER
_UID = _attribute("UID", _XSD("token"))
SCHEMA = (
    '<grammar xmlns="http://relaxng.org/ns/structure/1.0" '
    'datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes"><start>'
    + _one(
        "AuditMessage",
        _one(
            "EventIdentification",
            _attribute("EventActionCode", _values(*"CRUDE"), optional=True),
            _attribute("EventDateTime", _XSD("dateTime")),
            _attribute("EventOutcomeIndicator", _values(0, 4, 8, 12)),
            _one("EventID", _CODE),
            _many("EventTypeCode", _CODE),
            _many("EventOutcomeDescription", "<text/>", least="optional"),
        ),
        _many(
            "ActiveParticipant",
            _attribute("UserID"),
            _attribute("AlternativeUserID", optional=True),
            _attribute("UserName", optional=True),
            _attribute("UserIsRequestor", _XSD("boolean")),
            _attribute("NetworkAccessPointID", _XSD("token"), optional=True),
            _attribute("NetworkAccessPointTypeCode", _values(*range(1, 6)), optional=True),
            _many("RoleIDCode", _CODE),
            _many("MediaIdentifier", _one("MediaType", _CODE), least="optional"),
            least="oneOrMore",
        ),
        _one(
            "AuditSourceIdentification",
            _attribute("AuditEnterpriseSiteID", _XSD("token"), optional=True),
            _attribute("AuditSourceID", _XSD("token")),
            _many("AuditSourceTypeCode", _attribute("csd-code", _XSD("token")), f"<optional>{_OTHER}</optional>"),
        ),
        _many(
            "ParticipantObjectIdentification",
            _attribute("ParticipantObjectID", _XSD("token")),
            _attribute("ParticipantObjectTypeCode", _values(*range(1, 5)), optional=True),
            _attribute("ParticipantObjectTypeCodeRole", _values(*range(1, 27)), optional=True),
            _attribute("ParticipantObjectDataLifeCycle", _values(*range(1, 16)), optional=True),
            _attribute("ParticipantObjectSensitivity", _XSD("token"), optional=True),
            _one("ParticipantObjectIDTypeCode", _CODE),
            "<choice>",
            _one("ParticipantObjectName", _XSD("token")),
            _one("ParticipantObjectQuery", _XSD("base64Binary")),
            "</choice>",
            _many(
                "ParticipantObjectDetail",
                _attribute("type", _XSD("token")),
                _attribute("value", _XSD("base64Binary")),
            ),
            _many(
                "ParticipantObjectDescription",
                _many("MPPS", _UID),
                _many("Accession", _attribute("Number", _XSD("token"))),
                _many(
                    "SOPClass",
                    _attribute("UID", _XSD("token"), optional=True),
                    _attribute("NumberOfInstances", _XSD("integer")),
                    _many("Instance", _UID),
                ),
                _many("ParticipantObjectContainsStudy", _many("StudyIDs", _UID), least="optional"),
                _many("Encrypted", _XSD("boolean"), least="optional"),
                _many("Anonymized", _XSD("boolean"), least="optional"),
            ),
        ),
    )
    + "</start></grammar>"
)


def demand_valid(messages: list[str], folder: Path) -> list[Element]:
    """The messages, parsed, once `xmllint` has found them all as the schema has them."""
    need("xmllint")
    schema = folder / "audit-message.rng"
    schema.write_text(SCHEMA)
    files = []
    for number, text in enumerate(messages):
        files.append(folder / f"message-{number:04}.xml")
        files[-1].write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["xmllint", "--noout", "--relaxng", schema, *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [ElementTree.fromstring(text) for text in messages]


@dataclass
class Rsyslog:
    """A repository: rsyslog over TLS, that demands a certificate and writes what it takes to a file."""

    folder: Path
    authority: Authority
    driver: str  # ossl, gtls; "": no TLS
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        need("rsyslogd")
        if self.driver and not list(Path("/usr/lib").glob(f"*/rsyslog/lmnsd_{self.driver}.so")):
            need(f"the driver {self.driver} of rsyslog")
        self.port = free_port()
        self.output = self.folder / "messages"
        shown = self.authority.issue("repository")
        stream = (
            f'streamdriver.name="{self.driver}" streamdriver.mode="1" streamdriver.authmode="x509/certvalid"'
            if self.driver
            else ""
        )
        (self.folder / "rsyslog.conf").write_text(
            f'global(workDirectory="{self.folder}" maxMessageSize="256k" '
            f'defaultNetstreamDriverCAFile="{self.authority.root.cert}" '
            f'defaultNetstreamDriverCertFile="{shown.cert}" defaultNetstreamDriverKeyFile="{shown.key}")\n'
            # Written by the thread that reads, before it ends the connection. With a queue between, what was confirmed
            # is lost with the process; and the file, opened at the first message beside the end of a connection, may
            # get a descriptor that 8.2302 then closes a second time: its lines went into our connections instead.
            'main_queue(queue.type="direct")\n'
            'template(name="raw" type="string" string="%rawmsg%\\n")\n'
            f'module(load="imtcp" {stream})\n'
            f'input(type="imtcp" port="{self.port}" address="127.0.0.1")\n'
            f'action(type="omfile" file="{self.output}" template="raw" flushOnTXEnd="on")\n'
        )

    def start(self) -> None:
        log = (self.folder / "rsyslog.log").open("ab")
        self.process = subprocess.Popen(
            ["rsyslogd", "-n", "-f", self.folder / "rsyslog.conf", "-i", self.folder / "pid"], stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 20
        while not _listens(self.port):
            assert self.process.poll() is None, (self.folder / "rsyslog.log").read_text()
            assert time.monotonic() < deadline, "rsyslog does not listen"
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None

    def lines(self) -> list[str]:
        return self.output.read_text(encoding="utf-8").splitlines() if self.output.exists() else []

    def wait(self, count: int, seconds: float = 20) -> list[re.Match[str]]:
        """The messages, once at least `count` are written; each as `LINE` has it."""
        deadline = time.monotonic() + seconds
        while len(self.lines()) < count:
            assert time.monotonic() < deadline, f"{len(self.lines())} messages of {count}"
            time.sleep(0.05)
        return [self._matched(line) for line in self.lines()]

    @staticmethod
    def _matched(line: str) -> re.Match[str]:
        found = LINE.fullmatch(line)
        assert found, line[:200]
        return found


def _listens(port: int) -> bool:
    """Asked of the system, not of the port: rsyslog would note whoever only knocks."""
    wanted = f":{port:04X}"
    return any(
        fields[1].endswith(wanted) and fields[3] == "0A"
        for fields in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    )
