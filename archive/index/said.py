"""What an arriving document says of others: key objects, rejection notes, dose reports."""

from __future__ import annotations

import structlog

from archive.dicom.attributes import Level
from archive.dicom.document import MAX_BYTES, code_of, key_object, read_content
from archive.dicom.dose import DOSE_REPORTS, doses
from archive.dicom.dose import MAX_BYTES as MAX_REPORT_BYTES
from archive.dicom.header import Header
from archive.dicom.uids import KEY_OBJECTS
from archive.errors import UnreadableInstance
from archive.index.arrival import Said
from archive.instance import Rejection

log = structlog.get_logger(__name__)


def said_of(fd: int, header: Header, *, offset: int, length: int, default_charset: str) -> Said:
    """What a document says of others; nothing of one whose content cannot be read, but for a rejection.

    Raises:
        UnreadableInstance: a rejection whose content cannot be read: it would be taken, and not applied.
    """
    is_report = header.sop_class_uid in DOSE_REPORTS
    if header.sop_class_uid != KEY_OBJECTS and not is_report:
        return Said()
    try:
        content = read_content(
            fd,
            offset=offset,
            length=length,
            transfer_syntax_uid=header.transfer_syntax_uid,
            default_charset=default_charset,
            max_bytes=MAX_REPORT_BYTES if is_report else MAX_BYTES,
        )
    except UnreadableInstance as error:
        if not is_report and code_of(header.levels[Level.IMAGE], "0040A043")[0] in set(Rejection):
            raise
        uid = header.sop_instance_uid
        log.warning("the content of a document cannot be read", sop_instance_uid=uid, why=str(error))
        return Said()
    if is_report:
        return Said(doses=tuple(doses(content)))
    return Said(key_object=key_object(content, study_instance_uid=header.study_instance_uid))
