"""The addresses of the feed. Included before the routes of jobs: `/jobs/events` is no job."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter

from trainwire.gateway.feed.clients import sse, websocket

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Server-sent events, without an end.",
        "content": {
            sse.MEDIA_TYPE: {
                "example": "id: 120-45-3\nevent: training_log\n"
                'data: {"type":"training_log","v":1,"job_id":42,"attempt":1,"kind":"logs","first_seq":120,'
                '"last_seq":120,"lines":[{"seq":120,"attempt":1,"ts":1790000000000000000,"log_type":"stdout",'
                '"text":"epoch 1"}]}\n\n'
            }
        },
    }
}

feed_router = APIRouter(tags=["feed"])
feed_router.add_api_websocket_route("/jobs/ws", websocket.jobs_socket)
feed_router.add_api_websocket_route("/jobs/{job_id}/ws", websocket.job_socket)
feed_router.add_api_route(
    "/jobs/events",
    sse.jobs_events,
    status_code=200,
    response_class=sse.EventStream,
    responses=_STREAM,
    summary="Follow all jobs",
)
feed_router.add_api_route(
    "/jobs/{job_id}/events",
    sse.job_events,
    status_code=200,
    response_class=sse.EventStream,
    responses=_STREAM,
    summary="Follow a job",
)
