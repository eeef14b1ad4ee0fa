#!/bin/sh
# A small grpc.min_reconnect_backoff_ms, set to reconnect soon, keeps a client from ever reaching a slow server.
#
# grpcio 1.85.1, Python 3.11.
#
# A guess would be that the option is the least pause between two attempts to connect, as its name and its place beside
# initial_ and max_reconnect_backoff_ms say. It is how long an attempt may take, the TLS handshake and the server's first
# frame included: until the pause of that attempt is over, and at least this long; 20 s by default. With 100 ms, and a
# longest pause of 1 s, a server that needs 1.5 s to greet is never reached: each attempt is cut off and made again,
# which is what an overloaded server, or one that thousands of clients find again at once, can bear least.
#
# What helps: initial_reconnect_backoff_ms and max_reconnect_backoff_ms alone make a client reconnect soon; set
# min_reconnect_backoff_ms to the longest time that a handshake may take.
#
# Seen:
#   grpcio 1.85.1
#   a server that greets after 1.5 s, and a call with a deadline of 15 s
#   initial 100 ms, longest 1 s: OK, 1 connection
#   the same, and min_reconnect_backoff_ms of 100: DEADLINE_EXCEEDED, 19 connections
#
# The second number of connections differs from run to run.
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'grpcio==1.85.1'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import sys

import grpc

SOON = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
GREETS_AFTER, DEADLINE = 1.5, 15


class Answer(grpc.GenericRpcHandler):
    """Answers every call."""

    def service(self, _):
        async def answer(_request, _context):
            return b"answer"

        return grpc.unary_unary_rpc_method_handler(answer)


class SlowServer:
    """Passes bytes on to a server; the first of each connection come back late."""

    def __init__(self, port):
        self.port = port
        self.connections = 0
        self.relays = []

    def accept(self, reader, writer):
        self.connections += 1
        self.relays.append(asyncio.create_task(self.relay(reader, writer)))

    async def relay(self, reader, writer):
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.port)
        copies = [
            asyncio.create_task(self.copy(reader, server_writer, 0)),
            asyncio.create_task(self.copy(server_reader, writer, GREETS_AFTER)),
        ]
        await asyncio.wait(copies)

    async def copy(self, reader, writer, wait):
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(wait)
                wait = 0
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()


async def call(options, slow, port):
    slow.connections = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            await channel.unary_unary("/example.Service/Call")(b"", timeout=DEADLINE, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            return error.code().name, slow.connections
        return "OK", slow.connections


async def main():
    print("grpcio", grpc.__version__)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Answer(),))
    slow = SlowServer(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    listening = await asyncio.start_server(slow.accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    print(f"a server that greets after {GREETS_AFTER} s, and a call with a deadline of {DEADLINE} s")
    code, connections = await call(SOON, slow, port)
    print(f"initial 100 ms, longest 1 s: {code}, {connections} connection")
    small_code, small_connections = await call([*SOON, ("grpc.min_reconnect_backoff_ms", 100)], slow, port)
    print(f"the same, and min_reconnect_backoff_ms of 100: {small_code}, {small_connections} connections")
    listening.close()
    await server.stop(None)
    return 0 if (code, connections, small_code) == ("OK", 1, "DEADLINE_EXCEEDED") and small_connections > 5 else 1


sys.exit(asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
