"""What the SpeedTest of the ANS measures of a source (REQ-DRIM-03): a CT in JPEG-LS lossless, moved to the DRIMbox.

    python -m tests.bench.speedtest            # 1300 images of 512 x 512
    python -m tests.bench.speedtest --slices 20 --size 64

The mover asks by Patient ID and Study Instance UID (C-MOVE, Study Root); the receiver, pynetdicom's, accepts JPEG-LS
and Explicit VR Little Endian, as a DRIMbox does, and writes nothing. Printed: the first image after the request, the
rate of the data sets in Mbit/s, and in which syntax they came. Ends with 1 when one is missing or was transcoded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove

from tests.bench.__main__ import DCMTK
from tests.builders import ct_slice, new_uid, part10
from tests.server import Server, free_port

ANS_STUDY = "1.2.250.1.213.4.5.2.1.199"  # that of the SpeedTest
PATIENT = "SPEEDTEST"


def make(folder: Path, slices: int, size: int) -> int:
    """Write the series: an anatomy with noise, 160 KiB for an image of 512 x 512 as in the CT of the ANS; its bytes."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[-1 : 1 : complex(size), -1 : 1 : complex(size)]
    body = np.where(x**2 + y**2 < 0.7, 1040 + 200 * np.sin(5 * x) * np.cos(4 * y), 40)
    total = 0
    compressed: list[Dataset] = []
    for number in range(min(slices, 10)):  # the work of the encoder is not measured: ten pictures, again and again
        noise = rng.normal(0, 8, body.shape)
        ds = ct_slice(rows=size, columns=size, number=number + 1)
        ds.PixelData = (body + noise).clip(0, 4095).astype("<u2").tobytes()
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
        compressed.append(ds)
    series = new_uid()
    for number in range(slices):
        ds = compressed[number % len(compressed)]
        ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = PATIENT, ANS_STUDY, series
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = new_uid()
        ds.InstanceNumber = number + 1
        content = part10(ds)
        (folder / f"{number:05}.dcm").write_bytes(content)
        total += len(content)
    return total


class Receiver:
    """The DRIMbox: counts what comes."""

    def __init__(self, port: int) -> None:
        self.first: float | None = None
        self.bytes = 0
        self.syntaxes: dict[str, int] = {}
        ae = AE("DRIMBOX")
        ae.maximum_pdu_size = 0
        ae.add_supported_context(CTImageStorage, [JPEGLSLossless, ExplicitVRLittleEndian])
        self.server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])

    def _store(self, event: evt.Event) -> int:
        if self.first is None:
            self.first = time.monotonic()
        data = event.request.DataSet
        self.bytes += data.getbuffer().nbytes
        syntax = str(event.context.transfer_syntax)
        self.syntaxes[syntax] = self.syntaxes.get(syntax, 0) + 1
        return 0x0000


def move(port: int, slices: int) -> tuple[float, float]:
    """When it was asked for, and when the last image was acknowledged."""
    ae = AE("DRIMBOX")
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
    assoc = ae.associate("127.0.0.1", port, ae_title="MINIPACS")
    if not assoc.is_established:
        raise RuntimeError("the archive does not accept the mover")
    ds = Dataset()
    ds.QueryRetrieveLevel, ds.PatientID, ds.StudyInstanceUID = "STUDY", PATIENT, ANS_STUDY
    asked = time.monotonic()
    answers = [status for status, _ in assoc.send_c_move(ds, "DRIMBOX", StudyRootQueryRetrieveInformationModelMove)]
    ended = time.monotonic()
    assoc.release()
    last = answers[-1]
    if last.Status != 0x0000 or last.NumberOfCompletedSuboperations != slices:
        raise RuntimeError(f"the move ended with {last.Status:04X}")
    return asked, ended


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minipacs-speedtest-")))
        (images := scratch / "images").mkdir()
        (folder := scratch / "server").mkdir()
        mebibytes = make(images, options.slices, options.size) / (1 << 20)
        port = free_port()
        receiver = Receiver(port)
        stack.callback(receiver.server.shutdown)
        server = Server(folder)
        server.environment["MINIPACS_DICOM__PEERS"] = json.dumps({"DRIMBOX": {"host": "127.0.0.1", "port": port}})
        server.start()
        stack.callback(server.stop)
        words = ["storescu", "-xt", "-aec", "MINIPACS", "-aet", "BENCH", "127.0.0.1", str(server.dicom_port), "+sd"]
        subprocess.run([*words, str(images)], env=DCMTK, check=True, stdout=subprocess.DEVNULL)
        asked, ended = move(server.dicom_port, options.slices)
    first = (receiver.first or ended) - asked
    print("| images · MiB | first image ms | Mbit/s | images/s | syntax |")
    print("|---|---|---|---|---|")
    same = receiver.syntaxes == {str(JPEGLSLossless): options.slices}
    print(
        f"| {options.slices} · {mebibytes:.0f} | {first * 1000:.0f} | {receiver.bytes * 8 / 1e6 / (ended - asked):.0f} "
        f"| {options.slices / (ended - asked):.0f} | {'as stored (JPEG-LS)' if same else receiver.syntaxes} |"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
