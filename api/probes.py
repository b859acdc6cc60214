"""Is it alive, is it ready, and how is it doing: /healthz, /readyz, /metrics (sheet 60 §4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address

import orjson
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from api import auth
from archive import heartbeat, probing, repository, timekeeping
from archive.access import Action
from archive.core import Archive, schema_revision
from archive.errors import ArchiveError, StorageFailed
from archive.schema import REVISION

router = APIRouter()
_QUANTILES = {"median": "0.5", "p95": "0.95", "worst": "1"}
_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class Metrics:
    """The figures of this process. With several `api.workers`, each answers for itself."""

    def __init__(self, archive: Archive) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "minipacs_http_requests", "Requests answered", ["method", "resource", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "minipacs_http_request_seconds",
            "Time to the end of the answer",
            ["resource"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self._found: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        free = Gauge(
            "minipacs_hot_free_bytes", "Free space of the hot volume above the reserve", registry=self.registry
        )
        free.set_function(lambda: _free_bytes(archive))
        self.registry.register(_ImmediateAccess(archive))

    def count(self, method: str, resource: str, status: int, seconds: float) -> None:
        """One request was answered; `status` 0 when its connection broke off before."""
        known = method if method in _METHODS else "other"
        found = self._found.get((known, resource, status))
        if found is None:  # to look them up by their labels costs more than to count
            found = self._requests.labels(known, resource, str(status)), self._seconds.labels(resource)
            self._found[known, resource, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _ImmediateAccess(Collector):
    """How soon images are there (REQ-CDC-09), as all processes measured it in the last day (`archive.probing`)."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering asks no database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Nothing while the database is away: the other figures are wanted then all the more."""
        try:
            with self._archive.reading() as conn:
                found = probing.summary(conn, now=self._archive.real_clock(), window=timedelta(days=1))
        except ArchiveError:
            return
        first = GaugeMetricFamily("minipacs_first_image_seconds", "To the first image", labels=["door", "quantile"])
        series = GaugeMetricFamily("minipacs_600_images_seconds", "To 600 images", labels=["door", "quantile"])
        failed = GaugeMetricFamily("minipacs_probes_failed", "Measurements that failed", labels=["door"])
        over = GaugeMetricFamily("minipacs_probes_over_limit", "Measurements slower than the law", labels=["door"])
        last = GaugeMetricFamily("minipacs_probe_timestamp_seconds", "The last measurement", labels=["door"])
        for door, one in found["doors"].items():
            failed.add_metric([door], one["failed"])
            over.add_metric([door], one["over_limit"])
            last.add_metric([door], one["last"]["at"].timestamp())
            for family, values in ((first, one["first_image_seconds"]), (series, one["seconds_for_600"])):
                for name, value in (values or {}).items():
                    family.add_metric([door, _QUANTILES[name]], value)
        limit = GaugeMetricFamily("minipacs_access_limit_seconds", "What the law gives", labels=["for"])
        limit.add_metric(["first_image"], found["limits"]["first_image_seconds"])
        limit.add_metric(["600_images"], found["limits"]["series_seconds"])
        yield from (first, series, failed, over, last, limit)


def _free_bytes(archive: Archive) -> float:
    """NaN when the volume does not say: the other figures are wanted then all the more."""
    try:
        return archive.hot.free_bytes()
    except StorageFailed:
        return math.nan


@router.get("/healthz", tags=["probes"], response_class=PlainTextResponse)
async def healthz() -> Response:
    """The process answers."""
    return Response("ok\n", media_type="text/plain")


@router.get("/readyz", tags=["probes"], responses={503: {"description": "not ready; the same, with the reasons"}})
def readyz(request: Request) -> Response:
    """200 when every edge listens and the schema is right; else 503 with the reasons. What works and needs somebody's
    attention, the audit repository or the clock, is among the warnings."""
    archive = auth.archive_of(request)
    warnings: list[str] = []
    try:
        revision = schema_revision(archive.engine)
        reasons = heartbeat.ready(archive)
        if revision != REVISION:
            reasons.insert(0, f"database: schema {revision or 'empty'}, this version needs {REVISION}")
        else:
            warnings = [*repository.warnings(archive), *timekeeping.warnings(archive)]
    except ArchiveError as error:
        reasons = [f"database: {error}"]
    body = {"ready": not reasons, "reasons": reasons, "warnings": warnings}
    return Response(orjson.dumps(body), 503 if reasons else 200, media_type="application/json")


@router.get("/metrics", tags=["probes"], response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Figures for Prometheus; from elsewhere than this host with a right to *system, metrics*."""
    if not _is_local(auth.source_of(request)):
        auth.demand_right(request, Action.SYSTEM)
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _is_local(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
