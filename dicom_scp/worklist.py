"""C-FIND of the Modality Worklist (PS3.4 Annex K, REQ-DCM-52): the request checked, one query, items as bytes."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from archive.access import Action
from archive.core import Archive
from archive.dicom.charset import SPECIFIC_CHARACTER_SET
from archive.dicom.elements import encoding_of
from archive.index.match import Key, is_asking
from archive.workflow import worklist
from archive.workflow.item import OF_STEP, RETURNABLE, STEP
from archive.workflow.worklist import Query
from dicom_scp.find import Plan, answers, key_of
from dicom_scp.identifier import Asked, Encoder, Field, decode, nested_of
from dicom_scp.messages import Answer, FindRequest
from dicom_scp.status import Status


def find(request: FindRequest, archive: Archive) -> Generator[Answer, None, None]:
    """Answer one C-FIND-RQ: a pending answer for each item, then the last. Closing the iterator ends the query.

    With more items than `dicom.find_limit`, the last answer is A700.

    Raises:
        NotAllowed: the peer may not ask for the worklist; the refusal is audited.
        UnreadableInstance, InvalidQuery: the identifier cannot be read, or a key's value is none of its VR.
        Unavailable: the index cannot be read, or the query cannot be audited.
    """
    return answers(request, archive, _plan, may=Action.WORKLIST)


def _plan(request: FindRequest, archive: Archive) -> Plan:
    """What is asked for and what is given back; what is not supported is left out, and said with FF01."""
    settings, encoding = archive.settings.dicom, encoding_of(request.transfer_syntax_uid)
    identifier = decode(request.identifier, encoding, default_charset=settings.default_charset)
    keys: list[Key] = []
    fields: list[Field] = []
    pending = Status.PENDING
    for tag, asked in identifier.elements.items():
        if tag == SPECIFIC_CHARACTER_SET or tag & 0xFFFF == 0:
            continue
        vr = RETURNABLE.get(tag)
        if vr is None:
            pending = Status.PENDING_WITHOUT_KEYS
            continue
        if tag == STEP:
            step = _step(asked)
            known = [one for one in step if one.tag in OF_STEP]
            if len(known) < len(step):
                pending = Status.PENDING_WITHOUT_KEYS
            key = Key(tag, vr, items=tuple(key_of(request, one, OF_STEP[one.tag]) for one in known))
            wanted = tuple(_field(one, OF_STEP[one.tag]) for one in known)
            fields.append(Field(tag, vr, wanted or tuple(Field(of, OF_STEP[of]) for of in sorted(OF_STEP))))
        else:
            key = key_of(request, asked, vr)
            fields.append(_field(asked, vr))
        if is_asking(key) or tag == STEP:  # `*` as status asks for any, which is more than not to ask
            keys.append(key)
    query = Query(tuple(keys), stations=settings.stations(), limit=settings.find_limit + 1)
    encoder = Encoder(fields, encoding, charsets=identifier.charsets)
    return Plan(partial(worklist.find, query=query), encoder, pending, unit="items")


def _step(asked: Asked) -> list[Asked]:
    """The elements of the request's step."""
    items = asked.items[0] if asked.items else ()
    return [one for one in items if one.tag & 0xFFFF and one.tag != SPECIFIC_CHARACTER_SET]


def _field(asked: Asked, vr: str) -> Field:
    return Field(asked.tag, vr, nested_of(asked) if vr == "SQ" else None)
