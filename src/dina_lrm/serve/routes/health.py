"""Whether the server answers, and what it counts."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from dina_lrm.scoring.wire import HealthReply
from dina_lrm.serve.desk import Desk
from dina_lrm.serve.routes.replies import json_response

__all__ = ["health_router", "status_of"]


def health_router(desk: Desk) -> APIRouter:
    """`/healthz` and `/metrics`."""
    router = APIRouter(tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", response_model=HealthReply, responses={503: {"model": HealthReply}})
    async def healthz() -> Response:
        """200 when the default model answers; 503 while it is loaded, or the server is being stopped."""
        reply = status_of(desk)
        response = json_response(reply, 200 if reply.status == "ready" else 503)
        if reply.status != "ready":
            response.headers["retry-after"] = "1"
        return response

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counts in Prometheus' text format."""
        return Response(desk.pool.observer.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def status_of(desk: Desk) -> HealthReply:
    """Of the whole server."""
    return HealthReply(status="draining" if desk.gate.draining else desk.pool.status)
