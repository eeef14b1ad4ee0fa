#!/bin/sh
# grpc.keepalive_timeout_ms does not bound how long a ping may go unanswered: a minute does.
#
# grpcio 1.85.3, Python 3.11.
#
# With keepalive_time 10 s and keepalive_timeout 2 s a guess would be, as gRPC's guide to keepalive says, that a stream
# whose host has fallen silent ends after 12 s. It ends after 70 s: an unanswered ping is bounded by another argument,
# grpc.http2.ping_timeout_ms, a minute by default, which neither keepalive_timeout nor the deadline of a call changes.
# Servers have the same two arguments, for callers that have fallen silent.
#
# What helps: grpc.http2.ping_timeout_ms beside grpc.keepalive_timeout_ms.
#
# Seen:
#   grpcio 1.85.3
#   keepalive_timeout_ms=2000: UNAVAILABLE, ping timeout, after 70 s
#   and http2.ping_timeout_ms=2000: UNAVAILABLE, ping timeout, after 12 s
#
# Exit code 0 while the behaviour is as described, 1 when it has changed. Takes 70 s.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'grpcio==1.85.3'
cat > "$folder/show.py" <<'PYTHON'
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

KEEPALIVE = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 2000)]
PING = [("grpc.http2.ping_timeout_ms", 2000)]
PATIENT = [("grpc.http2.min_ping_interval_without_data_ms", 1000)]


class Host:
    """Passes bytes on to the server until it is silent; its connections stay open."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.silent = False
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        caller, _ = self.listener.accept()
        called = socket.create_connection(("127.0.0.1", port))
        for ends in ((caller, called), (called, caller)):
            threading.Thread(target=self.copy, args=ends, daemon=True).start()

    def copy(self, source, target):
        while data := source.recv(65536):
            if not self.silent:
                target.sendall(data)


def stream(request, context):
    yield b""
    while context.is_active():
        time.sleep(0.1)


def end_of_stream(options):
    host = Host()
    with grpc.insecure_channel("127.0.0.1:%d" % host.listener.getsockname()[1], options=options) as channel:
        answers = channel.unary_stream("/a.Service/Stream")(b"")
        next(answers)
        host.silent, began = True, time.monotonic()
        try:
            next(answers)
        except grpc.RpcError as error:
            reason = "ping timeout" if "ping timeout" in error.details() else error.details()
            return f"{error.code().name}, {reason}", round(time.monotonic() - began)


server = grpc.server(ThreadPoolExecutor(8), options=PATIENT)
methods = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", methods)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("grpcio", grpc.__version__, flush=True)
with ThreadPoolExecutor(2) as both:
    plain, bounded = both.map(end_of_stream, (KEEPALIVE, KEEPALIVE + PING))
print("keepalive_timeout_ms=2000: {}, after {} s".format(*plain))
print("and http2.ping_timeout_ms=2000: {}, after {} s".format(*bounded), flush=True)
os._exit(0 if plain[1] > 60 and bounded[1] < 30 else 1)  # the silent connections would keep the process
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
