"""gRPC without generated stubs: method names to coroutines over serialized messages.

Bytes go in and out untouched, so Publish is parsed once and a PullResponse is spliced, never built as objects.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from millrace.broker.errors import Refused, invalid

log = logging.getLogger(__name__)

Call: TypeAlias = Any  # grpc.aio.ServicerContext; grpc brings no types
Unary = Callable[[bytes, Call], Awaitable[bytes]]

MAX_PAGE = 1_000


class Handlers(grpc.GenericRpcHandler):
    """Finds the coroutine of a call: service method PublishThis is `publish_this` of the servant with that service."""

    def __init__(self, *servants: Any) -> None:
        self._methods: dict[str, Any] = {}
        for servant in servants:
            for name in (name for name in vars(type(servant)) if not name.startswith("_") and name != "service"):
                call = getattr(servant, name)
                path = f"/{servant.service}/{''.join(part.capitalize() for part in name.split('_'))}"
                if name.startswith("streaming"):
                    self._methods[path] = grpc.stream_stream_rpc_method_handler(_refusing_stream(call))
                else:
                    self._methods[path] = grpc.unary_unary_rpc_method_handler(_refusing(call))

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call; of one that we do not have, the one that says so."""
        known = self._methods.get(handler_call_details.method)
        if known is not None:
            return known

        async def unimplemented(_: bytes, context: Call) -> bytes:
            text = f"The Millrace broker does not support {handler_call_details.method.strip('/')}."
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
            return b""

        return grpc.unary_unary_rpc_method_handler(unimplemented)


def _refusing(call: Unary) -> Unary:
    async def answered(request: bytes, context: Call) -> bytes:
        try:
            return await call(request, context)
        except Refused as refused:
            await context.abort(refused.code, refused.message)
        except DecodeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"The request is not what this call takes: {error}")
        return b""

    return answered


def _refusing_stream(call: Any) -> Any:
    async def answered(requests: Any, context: Call) -> None:
        try:
            await call(requests, context)
        except Refused as refused:
            await context.abort(refused.code, refused.message)

    return answered


def page(names: Iterable[str], prefix: str, asked: Any) -> tuple[list[str], str]:
    """Return one page of the sorted names with a prefix, and the token of the next page (its first name; "": none).

    Raises:
        Refused: INVALID_ARGUMENT for a negative page_size or a token that no page gave.
    """
    if asked.page_size < 0:
        raise invalid(f"page_size must not be negative, got {asked.page_size}")
    if asked.page_token and not re.match("projects/", asked.page_token):
        raise invalid(f"Invalid page_token: {asked.page_token}")
    found = sorted(name for name in names if name.startswith(prefix) and name >= asked.page_token)
    size = min(asked.page_size or MAX_PAGE, MAX_PAGE)
    return found[:size], found[size] if len(found) > size else ""
