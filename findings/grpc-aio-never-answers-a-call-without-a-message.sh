#!/bin/sh
# A grpc.aio server never answers a unary call that ends without a request message.
#
# grpcio 1.85.3, Python 3.11, Linux.
#
# HTTP/2 lets a caller end its side with the headers alone; a health check of a proxy that loses the body does so, for
# example HAProxy's http-check with a body that begins with a zero byte, as every gRPC message that is not compressed
# does. The synchronous server answers UNIMPLEMENTED at once. A guess would be that grpc.aio does too: it starts no
# handler and no interceptor, and leaves the call open until its deadline, so a check without one times out, and says
# nothing of why.
#
# Seen:
#   grpcio 1.85.3
#   grpc.server: UNIMPLEMENTED, '"b\'/a.Service/Call\'" requires exactly one request message.'
#   grpc.aio.server: nothing within 3 s, handlers started: 0
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'grpcio==1.85.3'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

started = []


def answer(_request, _context):
    started.append("sync")
    return b""


async def answer_later(_request, _context):
    started.append("aio")
    return b""


def serve(server, function):
    methods = {"Call": grpc.unary_unary_rpc_method_handler(function)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", methods)])
    return server.add_insecure_port("127.0.0.1:0")


async def no_message():
    for message in ():
        yield message


async def call(port):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await channel.stream_unary("/a.Service/Call")(no_message(), timeout=3)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


async def main():
    print("grpcio", grpc.__version__)
    plain = grpc.server(ThreadPoolExecutor(1))
    port = serve(plain, answer)
    plain.start()
    first, details = await call(port)
    print(f"grpc.server: {first.name}, {details!r}")
    plain.stop(None)
    server = grpc.aio.server()
    port = serve(server, answer_later)
    await server.start()
    second, _ = await call(port)
    what = "nothing within 3 s" if second is grpc.StatusCode.DEADLINE_EXCEEDED else second.name
    print(f"grpc.aio.server: {what}, handlers started: {started.count('aio')}")
    await server.stop(None)
    return first is grpc.StatusCode.UNIMPLEMENTED and second is grpc.StatusCode.DEADLINE_EXCEEDED and not started


sys.exit(0 if asyncio.run(main()) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
