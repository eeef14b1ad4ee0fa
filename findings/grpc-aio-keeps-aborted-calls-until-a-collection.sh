#!/bin/sh
# A call that an asyncio handler ends by context.abort() stays in memory, with its request, until a garbage collection.
#
# grpcio 1.85.3, Python 3.11.
#
# A guess would be that a call is freed when it has ended, as one that returns is. But the context keeps the error that
# abort() raises, the error keeps its traceback, and that the frame of the handler, which has the context and the
# request: a circle. Servers that refuse much, as codes that are guessed or callers above their limit, so fill up with
# ended calls; one that collects rarely (gc.freeze, gc.set_threshold) holds thousands, and the memory that they took
# is not given back.
#
# What helps: context.set_code(), set_details() and set_trailing_metadata(), and return: the caller sees the same.
#
# Seen:
#   grpcio 1.85.3, 100 calls ended NOT_FOUND with 100 kB of request each, the collector is off
#   context.abort(): 100 errors and 10.0 MB of requests are kept
#   context.set_code() and return: 0 errors and 0.0 MB of requests are kept
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'grpcio==1.85.3'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import gc
import sys

import grpc

CALLS, SIZE = 100, 100_000


class Request:
    """What a call asks for."""

    def __init__(self, content):
        self.content = content


async def by_abort(request, context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


async def by_status(request, context):
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("no such thing")
    return b""


async def kept(handler):
    """The errors, and the megabytes of requests, that are in memory after the calls."""
    server = grpc.aio.server()
    methods = {"Find": grpc.unary_unary_rpc_method_handler(handler, request_deserializer=Request)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    codes = set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(CALLS):
            try:
                await channel.unary_unary("/a.Service/Find")(b"x" * SIZE)
            except grpc.RpcError as error:
                codes.add(error.code())
    await server.stop(None)
    assert codes == {grpc.StatusCode.NOT_FOUND}
    objects = gc.get_objects()
    errors = sum(isinstance(each, grpc.aio.AbortError) for each in objects)
    return errors, sum(len(each.content) for each in objects if isinstance(each, Request)) / 1e6


gc.disable()
print(f"grpcio {grpc.__version__}, {CALLS} calls ended NOT_FOUND with {SIZE // 1000} kB of request each, "
      "the collector is off")
aborted = asyncio.run(kept(by_abort))
print("context.abort(): {} errors and {:.1f} MB of requests are kept".format(*aborted))
gc.collect()
returned = asyncio.run(kept(by_status))
print("context.set_code() and return: {} errors and {:.1f} MB of requests are kept".format(*returned))
sys.exit(0 if aborted[0] > 90 and aborted[1] > 9 and returned[0] == 0 and returned[1] < 1 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
