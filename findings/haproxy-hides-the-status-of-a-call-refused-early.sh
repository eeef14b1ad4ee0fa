#!/bin/sh
# A stream of requests that a gRPC server refuses before its end is CANCELLED for a caller behind HAProxy.
#
# HAProxy 2.6.12, nginx 1.22.1, grpcio 1.85.1, Python 3.11, Debian 12.
#
# A server may answer before the request is complete, and then reset the stream without an error (RFC 9113, 8.1), as
# grpcio does. A guess would be that a proxy passes the answer on, as nginx does. HAProxy resets the caller's stream
# with CANCEL, and the status, message and trailing metadata are lost: UNAUTHENTICATED and RESOURCE_EXHAUSTED become
# CANCELLED, as if the caller had given up itself, which few repeat or alert on. A single message that is larger than
# the server takes meets the same, now and then: from 1 to all of 20 calls with 8 MB, and nearly none just above the
# limit.
#
# What helps: a server that reads the requests before it refuses them; grpc.max_send_message_length in the client, not
# above what the server takes, which refuses by the same code.
#
# Seen:
#   HAProxy 2.6.12, nginx 1.22.1, grpcio 1.85.1
#   a stream of requests that is refused, directly: UNAUTHENTICATED 50 times
#   a stream of requests that is refused, nginx: UNAUTHENTICATED 50 times
#   a stream of requests that is refused, HAProxy: CANCELLED 50 times
#   the same, when the server reads it first, HAProxy: UNAUTHENTICATED 50 times
#
# Exit code 0 while the behaviour is as described, 1 when it has changed. Needs Debian 12 with apt-get.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'grpcio==1.85.1'
(cd "$folder" && apt-get download --quiet --quiet haproxy nginx liblua5.3-0 libpcre2-8-0 libopentracing1 \
    libopentracing-c-wrapper0 2>/dev/null)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
cat > "$folder/show.py" <<'PYTHON'
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc

FOLDER = pathlib.Path(sys.argv[1])
CALLS = 50
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend callers
    bind 127.0.0.1:{port} proto h2
    default_backend server
backend server
    server a 127.0.0.1:{server} proto h2
"""
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log /dev/null;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder}; client_max_body_size 0;
    server {{ listen 127.0.0.1:{port} http2; location / {{ grpc_pass grpc://127.0.0.1:{server}; }} }}
}}
"""


def refuse(_requests, context):
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token has expired")


def read_and_refuse(requests, context):
    for _ in requests:
        pass
    refuse(requests, context)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(*command):
    libraries = {"LD_LIBRARY_PATH": str(FOLDER / "debian/usr/lib/x86_64-linux-gnu")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | libraries, **quiet)
    for _ in range(200):
        with socket.socket() as knock:
            if not knock.connect_ex(("127.0.0.1", ports[len(processes)])):
                return process
        time.sleep(0.05)
    sys.exit(f"{command[0]} did not start")


def stream(method):
    def upload(channel):
        channel.stream_unary(f"/a.Service/{method}")((bytes(50_000) for _ in range(100)), timeout=30)

    return upload


def show(name, port, call):
    codes = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(CALLS):
            try:
                call(channel)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
    print(f"{name}: " + ", ".join(f"{code} {number} times" for code, number in codes.items()), flush=True)
    return set(codes)


def version(package):
    deb = next(FOLDER.glob(f"{package}_*.deb"))
    command = ["dpkg-deb", "-f", deb, "Version"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("-")[0]


server = grpc.server(ThreadPoolExecutor(8))
methods = {"Refuse": grpc.stream_unary_rpc_method_handler(refuse),
           "ReadAndRefuse": grpc.stream_unary_rpc_method_handler(read_and_refuse)}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", methods)])
upstream = server.add_insecure_port("127.0.0.1:0")
server.start()
ports, processes = [free_port(), free_port()], []
(FOLDER / "nginx.conf").write_text(NGINX.format(folder=FOLDER, port=ports[0], server=upstream))
(FOLDER / "haproxy.cfg").write_text(HAPROXY.format(port=ports[1], server=upstream))
try:
    processes.append(start(FOLDER / "debian/usr/sbin/nginx", "-c", FOLDER / "nginx.conf"))
    processes.append(start(FOLDER / "debian/usr/sbin/haproxy", "-db", "-f", FOLDER / "haproxy.cfg"))
    print(f"HAProxy {version('haproxy')}, nginx {version('nginx')}, grpcio {grpc.__version__}", flush=True)
    ways = (("directly", upstream), ("nginx", ports[0]), ("HAProxy", ports[1]))
    seen = [show(f"a stream of requests that is refused, {way}", port, stream("Refuse")) for way, port in ways]
    seen.append(show("the same, when the server reads it first, HAProxy", ports[1], stream("ReadAndRefuse")))
finally:
    for process in processes:
        process.kill()
    server.stop(None)
codes = ("UNAUTHENTICATED", "UNAUTHENTICATED", "CANCELLED", "UNAUTHENTICATED")
sys.exit(0 if seen == [{code} for code in codes] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
