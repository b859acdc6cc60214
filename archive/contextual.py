"""A contextual call: another program says which exam a person is to see (REQ-DRIM-09). All that it says has to be true
of an exam, so that nobody is shown the images of somebody else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import select

from archive.access import Action, Actor, demand
from archive.core import Archive
from archive.errors import InvalidRequest, NotFound
from archive.identity.demographics import Asked, Wanted, domain_of, find
from archive.index.asked import audit_query
from archive.index.held import held_back
from archive.instance import CURRENT
from archive.schema import instance, series, study

MOST = 10  # studies that one call opens, the latest
_MOST_CHARACTERS = 256
_OID = re.compile(r"[0-9.]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Call:
    """What is said; "" what is not. `issuer`: who assigned `patient_id`, as CX-4 (`namespace&OID&ISO`), or one of
    both."""

    study_uid: str = ""
    accession_number: str = ""
    patient_id: str = ""
    issuer: str = ""

    @property
    def authority(self) -> tuple[str, str]:
        """Namespace and OID of the issuer."""
        namespace, _, rest = self.issuer.partition("&")
        if not rest and _OID.fullmatch(namespace):
            return "", namespace
        return namespace, rest.partition("&")[0]


def studies_called(archive: Archive, call: Call, *, actor: Actor) -> list[str]:
    """The Study Instance UIDs that are meant and have images to be seen, the latest first. The question is audited.

    Raises:
        NotAllowed: not with this role. InvalidRequest: no exam and nobody is named, or too much is said.
        NotFound: there is no such exam, or it is another patient's.
    """
    demand(actor, Action.SEE)
    said = {name: getattr(call, name) for name in call.__slots__ if getattr(call, name)}
    if not said.keys() - {"issuer"} or (call.issuer and not call.patient_id):
        raise InvalidRequest("say studyInstanceUID, accessionNumber, or PatientID with its PatientIDIssuer")
    if any(len(value) > _MOST_CHARACTERS for value in said.values()):
        raise InvalidRequest(f"values have {_MOST_CHARACTERS} characters at most")
    audit_query(archive.commit, actor, parameters={"query": {"contextual_call": said}})
    seen = (
        select(instance.c.pk)
        .select_from(instance.join(series))
        .where(series.c.study_pk == study.c.pk, instance.c.state.in_(sorted(CURRENT)), ~held_back())
    )
    wanted = select(study.c.study_instance_uid).where(seen.exists())
    if call.study_uid:
        wanted = wanted.where(study.c.study_instance_uid == call.study_uid)
    if call.accession_number:
        wanted = wanted.where(study.c.accession_number == call.accession_number)
    with archive.reading() as conn:
        if call.patient_id:
            domain = None
            if call.issuer:
                accepted = archive.settings.identity.ins_oids
                domain = domain_of(conn, archive.authorities, accepted, *call.authority)
                if domain is None:
                    raise NotFound("nobody here has an identifier of this issuer")
            holders = [one.pk for one in find(conn, Asked(identifiers=((Wanted(call.patient_id, domain),),)))]
            wanted = wanted.where(study.c.patient_pk.in_(holders))
        latest = wanted.order_by(study.c.study_date.desc(), study.c.pk.desc())
        found = list(conn.execute(latest.limit(MOST)).scalars())
    if not found:
        raise NotFound("no such exam, or another patient's")
    return found
