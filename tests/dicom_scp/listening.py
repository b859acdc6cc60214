"""A peer that is told things: storage commitment reports, notifications of availability. By pynetdicom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import InstanceAvailabilityNotification, StorageCommitmentPushModel

from tests.server import free_port


class Listener:
    """What it heard, and what it answers."""

    def __init__(self, ae_title: str, port: int) -> None:
        self.ae_title = ae_title
        self.port = port
        self.status = 0x0000
        self.heard: Queue[tuple[int, Dataset]] = Queue()  # Event Type ID (0: an N-CREATE) and data set

    def hear(self, seconds: float = 20) -> tuple[int, Dataset]:
        """The next thing that it was told."""
        return self.heard.get(timeout=seconds)

    def hears_nothing(self, seconds: float) -> bool:
        try:
            self.heard.get(timeout=seconds)
        except Empty:
            return True
        return False

    def on_report(self, event: evt.Event) -> tuple[int, Dataset | None]:
        assert event.request.EventTypeID is not None
        role = event.assoc.requestor.role_selection[StorageCommitmentPushModel]
        assert (role.scu_role, role.scp_role) == (False, True)  # reversed: who tells is the SCP
        if self.status == 0:
            self.heard.put((event.request.EventTypeID, event.event_information))
        return self.status, None

    def on_create(self, event: evt.Event) -> tuple[int, Dataset | None]:
        if self.status == 0:
            self.heard.put((0, event.attribute_list))
        return self.status, None


@contextmanager
def listening(ae_title: str = "CT1", port: int = 0) -> Iterator[Listener]:
    """A listener on a port of its own, or on this one."""
    listener = Listener(ae_title, port or free_port())
    ae = AE(ae_title)
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    ae.add_supported_context(InstanceAvailabilityNotification)
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, listener.on_report), (evt.EVT_N_CREATE, listener.on_create)]
    server = ae.start_server(("127.0.0.1", listener.port), block=False, evt_handlers=handlers)
    try:
        yield listener
    finally:
        server.shutdown()


def request(transaction_uid: str, *instances: tuple[str, str]) -> Dataset:
    """Action Information: class and instance of each."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = []
    for class_uid, instance_uid in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, instance_uid
        ds.ReferencedSOPSequence.append(item)
    return ds
