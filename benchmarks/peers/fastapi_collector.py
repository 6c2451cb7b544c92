"""The collector that one would write first: FastAPI, google-cloud-pubsub, `publish().result()` before the 200.

    TOPIC=projects/P/topics/T uvicorn benchmarks.peers.fastapi_collector:app --workers 2

It checks nothing, and has nowhere to put events while Pub/Sub is away.
"""

import os

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from google.cloud import pubsub_v1

app = FastAPI()
_publisher = pubsub_v1.PublisherClient()
_topic = os.environ["TOPIC"]


@app.post("/v1/{kind}")
async def take(kind: str, request: Request) -> dict[str, bool]:
    """Publish a body as one message; wait for it in one of the threads that FastAPI keeps for what blocks."""
    future = _publisher.publish(_topic, await request.body(), kind=kind)
    await run_in_threadpool(future.result)
    return {"success": True}
