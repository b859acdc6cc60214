"""Fetching instances of another archive over WADO-RS (PS3.18 10.4), for `minipacs pull --via wado`."""

from __future__ import annotations

import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING

from api.multipart import PIECE_BYTES, Reader, boundary_of, media_type
from archive.access import Door
from archive.errors import InvalidRequest, Rejected
from archive.ingest import ingest
from archive.storage.part10 import Part10
from archive.takeover import Listed
from dicom_scp.ends import ConnectionGone
from dicom_scp.remote import Remote, requests_for, value

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as it is stored


class Wado:
    """Fetches what is missing of a study; it is filed as the peer's, whose instances C-FIND has listed.

    Args:
        url: the service root, as `https://pacs/dicom-web`.
        token: sent as `Authorization: Bearer`; "" for none.
    """

    def __init__(self, remote: Remote, url: str, *, token: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest("the address of a DICOMweb service begins with http:// or https://")
        self._remote = remote
        self._url = url.rstrip("/")
        self._headers = {"Accept": _ACCEPT, **({"Authorization": f"Bearer {token}"} if token else {})}

    def __call__(self, study_uid: str, listed: Sequence[Listed], missing: Sequence[Listed]) -> str:
        """Why not all of it came; "" when nothing was refused.

        Raises:
            ConnectionGone: the service is away, or broke off.
            Unavailable: this archive cannot take more.
        """
        reasons: dict[str, None] = {}
        scope = uuid.uuid4().hex
        try:
            for path in _paths(study_uid, listed, missing):
                reasons |= dict.fromkeys(self._get(path, scope))
        finally:
            self._remote.archive.accesses.end_scope(scope)
        return "; ".join(reasons)

    def _get(self, path: str, scope: str) -> list[str]:
        request = urllib.request.Request(f"{self._url}/{path}", headers=self._headers)  # noqa: S310 (http, see above)
        seconds = self._remote.archive.settings.dicom.idle_seconds
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
                return self._take(answer, scope)
        except urllib.error.HTTPError as error:
            error.close()
            return [f"the service answers {error.code}"]
        except (OSError, HTTPException) as error:
            raise ConnectionGone(f"the service is away or broke off: {type(error).__name__}") from error

    def _take(self, answer: HTTPResponse, scope: str) -> list[str]:
        name, parameters = media_type(answer.headers.get("Content-Type", ""))
        if name != "multipart/related":
            return [f"the service sends {name[:64] or 'something'} instead of multipart/related"]
        taking = _Taking(self._remote, scope)
        try:
            reader = Reader(boundary_of(parameters, "application/dicom"), taking)
            while piece := answer.read(PIECE_BYTES):
                reader.feed(piece)
            reader.finish()
        except Rejected as error:
            taking.refused.append(str(error))
        finally:
            taking.discard()
        return taking.refused


class _Taking:
    """Each part of an answer into the archive."""

    def __init__(self, remote: Remote, scope: str) -> None:
        self.refused: list[str] = []
        self._archive = remote.archive
        self._actor = replace(remote.actor, door=Door.DICOMWEB)
        self._ae_title = remote.ae_title
        self._scope = scope
        self._part: Part10 | None = None

    def begin(self, headers: dict[str, str]) -> None:
        self._part = Part10(self._archive.hot, at=self._archive.clock(), source_ae=self._ae_title)

    def data(self, data: Buffer) -> None:
        assert self._part is not None
        self._part.feed(data)

    def end(self) -> None:
        part = self._part
        assert part is not None
        incoming = part.finish()
        self._part = None
        try:
            ingest(self._archive, incoming, actor=self._actor, scope=self._scope, forward=False)
        except Rejected as error:
            self.refused.append(f"refused here: {error}")

    def discard(self) -> None:
        """Forget a part that was broken off."""
        if self._part is not None:
            self._part.discard()


def _paths(study_uid: str, listed: Sequence[Listed], missing: Sequence[Listed]) -> list[str]:
    paths = []
    for keys in requests_for(study_uid, listed, missing):
        path = f"studies/{study_uid}"
        if value(keys, "QueryRetrieveLevel") != "STUDY":
            path += f"/series/{value(keys, 'SeriesInstanceUID')}"
        uids = keys["00080018"]["Value"] if value(keys, "QueryRetrieveLevel") == "IMAGE" else []
        paths += [f"{path}/instances/{uid}" for uid in uids] or [path]
    return paths
