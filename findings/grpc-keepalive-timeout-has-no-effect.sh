#!/bin/sh
# A peer that falls silent is found after a minute or two, whatever grpc.keepalive_timeout_ms says.
#
# grpcio 1.85.1, Python 3.11, Linux.
#
# A guess would be keepalive_time_ms + keepalive_timeout_ms at most. But the time-out of keepalive is never started;
# what counts is the one of pings, grpc.http2.ping_timeout_ms, which is a minute. And after two pings without data
# (grpc.http2.max_pings_without_data) a client sends only one a minute, so that one with an idle stream, as of a balance
# that does not change, may need two minutes. So it is with a peer whose kernel still takes bytes, as a frozen process,
# or a proxy that lost its other side; for one whose host is gone, gRPC sets TCP_USER_TIMEOUT to keepalive_timeout_ms.
#
# What helps: set grpc.http2.ping_timeout_ms as well, and grpc.http2.max_pings_without_data to 0.
#
# Seen:
#   grpcio 1.85.1, pings every 10 s with a time-out of 5 s, an idle stream falls silent after 25 s
#   client: found after 115 s
#   client, pings without data unlimited: found after 65 s
#   the same, and ping_timeout_ms of 5000: found after 10 s
#   server: found after 65 s
#   server, pings without data unlimited, and ping_timeout_ms of 5000: found after 10 s
#
# grpc/grpc has an experiment that starts the time-out of keepalive (pull request 39239), off at this version. Exit code
# 0 while the behaviour is as described, 1 when it has changed. It takes about three minutes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'grpcio==1.85.1'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import sys
import time

import grpc

SILENT_AFTER = 25
KEEPALIVE = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5000)]
UNLIMITED = [*KEEPALIVE, ("grpc.http2.max_pings_without_data", 0)]
BOUNDED = [*UNLIMITED, ("grpc.http2.ping_timeout_ms", 5000)]
PERMIT = [("grpc.http2.min_ping_interval_without_data_ms", 5000)]


class Watch(grpc.GenericRpcHandler):
    """Sends one message and then nothing, until the call is cancelled."""

    def __init__(self):
        self.cancelled = asyncio.Event()

    def service(self, _):
        async def watch(_request, _context):
            yield b"balance"
            try:
                await asyncio.sleep(3600)
            finally:
                self.cancelled.set()

        return grpc.unary_stream_rpc_method_handler(watch)


class Relay:
    """Passes bytes on to a server, until it falls silent. It takes them even then."""

    def __init__(self, port):
        self.port = port
        self.is_silent = False
        self.copies = []

    async def accept(self, reader, writer):
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.port)
        for source, sink in ((reader, server_writer), (server_reader, writer)):
            self.copies.append(asyncio.create_task(self.copy(source, sink)))

    async def copy(self, reader, writer):
        try:
            while data := await reader.read(65536):
                if not self.is_silent:
                    writer.write(data)
        except ConnectionError:
            pass


async def found_after(client_options, server_options):
    watch = Watch()
    server = grpc.aio.server(options=[*PERMIT, *server_options])
    server.add_generic_rpc_handlers((watch,))
    relay = Relay(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    listening = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with grpc.aio.insecure_channel(address, client_options) as channel:
        call = channel.unary_stream("/example.Service/Watch")(b"")
        await call.read()
        await asyncio.sleep(SILENT_AFTER)
        relay.is_silent = True
        began = time.monotonic()
        found = watch.cancelled.wait() if server_options else call.code()
        try:
            await asyncio.wait_for(found, 150)
        except TimeoutError:
            pass
        seconds = time.monotonic() - began
        call.cancel()
    for copy in relay.copies:
        copy.cancel()
    listening.close()
    await server.stop(0)
    return seconds


async def main():
    print(f"grpcio {grpc.__version__}, pings every 10 s with a time-out of 5 s, an idle stream falls silent "
          f"after {SILENT_AFTER} s", flush=True)
    seconds = await asyncio.gather(found_after(KEEPALIVE, []), found_after(UNLIMITED, []), found_after(BOUNDED, []),
                                   found_after([], KEEPALIVE), found_after([], BOUNDED))
    names = ("client", "client, pings without data unlimited", "the same, and ping_timeout_ms of 5000", "server",
             "server, pings without data unlimited, and ping_timeout_ms of 5000")
    for name, each in zip(names, seconds, strict=True):
        print(f"{name}: found after {each:.0f} s")
    late = seconds[0] > 90 and seconds[1] > 45 and seconds[3] > 45
    return 0 if late and seconds[2] < 30 and seconds[4] < 30 else 1


sys.exit(asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2>"$folder/log" || { code=$?; cat "$folder/log" >&2; exit "$code"; }
