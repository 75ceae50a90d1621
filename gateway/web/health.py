"""Probes and metrics: what an orchestrator and a Prometheus ask of the admin port."""

import orjson
from litestar import Response, get

from gateway.telemetry import CONTENT_TYPE
from gateway.web.access import OPEN, SCRAPE, Caller, services_of
from gateway.web.services import Probe


@get("/livez", opt=OPEN, include_in_schema=False, sync_to_thread=False)
def live(request: Caller) -> Response[bytes]:
    """200 while restarting this process would not help."""
    return _answer(services_of(request).live())


@get("/readyz", opt=OPEN, include_in_schema=False, sync_to_thread=False)
def ready(request: Caller) -> Response[bytes]:
    """200 while requests should be sent here."""
    return _answer(services_of(request).ready())


@get("/startupz", opt=OPEN, include_in_schema=False, sync_to_thread=False)
def started(request: Caller) -> Response[bytes]:
    """200 once the start is over."""
    return _answer(services_of(request).started())


@get("/metrics", opt=SCRAPE, include_in_schema=False, sync_to_thread=True)
def metrics(request: Caller) -> Response[bytes]:
    """Prometheus text. From this machine without a key, from elsewhere with one."""
    return Response(services_of(request).metrics(), headers={"content-type": CONTENT_TYPE})


def _answer(probe: Probe) -> Response[bytes]:
    status = "ok" if probe.ok else "failing"
    return Response(
        orjson.dumps({"status": status, "checks": probe.checks}),
        media_type="application/json",
        status_code=200 if probe.ok else 503,
    )


HANDLERS = (live, ready, started, metrics)
