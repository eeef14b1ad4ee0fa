#!/bin/sh
# A retry policy on UNAVAILABLE repeats a call that nginx ended with 504 only sometimes.
#
# nginx 1.22.1, grpcio 1.85.3, Python 3.11, Debian 12. HAProxy 2.6's and 3.0's 504 is always repeated.
#
# gRPC maps 504 to UNAVAILABLE, so a guess would be that a policy of 4 attempts makes 4. But a call that has received
# headers is committed and is not repeated, unless the stream ended with them. nginx's 504 has a page as its body, sent
# after the headers: if gRPC reads the headers first, the call ends UNAVAILABLE without another attempt.
#
# What helps: an error_page that answers with headers alone: grpc-status 14 and `return 204`.
#
# Seen (the numbers of the second line vary; that some calls have fewer than 4 attempts does not):
#   grpcio 1.85.3
#   nginx's own page: UNAVAILABLE 200 times, calls by attempts: {1: 75, 2: 32, 3: 21, 4: 72}
#   error_page with headers alone: UNAVAILABLE 200 times, calls by attempts: {4: 200}
#
# Exit code 0 while the behaviour is as described, 1 when it has changed. Needs Debian 12 with apt-get.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'grpcio==1.85.3'
(cd "$folder" && apt-get download --quiet --quiet nginx libpcre2-8-0 2>/dev/null)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
cat > "$folder/show.py" <<'PYTHON'
import json
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
CALLS = 200
POLICY = {"maxAttempts": 4, "initialBackoff": "0.02s", "maxBackoff": "0.05s", "backoffMultiplier": 2,
          "retryableStatusCodes": ["UNAVAILABLE"]}
OPTIONS = [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": POLICY}]})),
           ("grpc.use_local_subchannel_pool", 1)]
CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log /dev/null;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port} http2;
        {error_page}
        location / {{ grpc_read_timeout 50ms; grpc_pass grpc://127.0.0.1:{server}; }}
        location @unavailable {{
            internal; default_type application/grpc; add_header grpc-status 14 always; return 204;
        }}
    }}
}}
"""
attempts = Counter()


def slow(request, context):
    attempts[request] += 1
    while context.is_active():
        time.sleep(0.01)
    return b""


def count(port, error_page, server):
    attempts.clear()
    (FOLDER / "nginx.conf").write_text(
        CONFIGURATION.format(folder=FOLDER, port=port, error_page=error_page, server=server))
    libraries = {"LD_LIBRARY_PATH": str(FOLDER / "debian/usr/lib/x86_64-linux-gnu")}
    nginx = subprocess.Popen([FOLDER / "debian/usr/sbin/nginx", "-c", FOLDER / "nginx.conf"],
                             env=os.environ | libraries, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as knock:
                if not knock.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.05)

        def call(number):
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
                try:
                    channel.unary_unary("/a.Service/Call")(str(number).encode(), timeout=30)
                except grpc.RpcError as error:
                    return error.code().name
            return "OK"

        with ThreadPoolExecutor(4) as callers:
            codes = Counter(callers.map(call, range(CALLS)))
    finally:
        nginx.terminate()
        nginx.wait()
    ends = ", ".join(f"{code} {number} times" for code, number in codes.items())
    return ends, dict(sorted(Counter(attempts.values()).items()))


server = grpc.server(ThreadPoolExecutor(64))
methods = {"Call": grpc.unary_unary_rpc_method_handler(slow)}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", methods)])
upstream = server.add_insecure_port("127.0.0.1:0")
server.start()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
print("grpcio", grpc.__version__, flush=True)
ends, own_page = count(port, "", upstream)
print(f"nginx's own page: {ends}, calls by attempts: {own_page}", flush=True)
ends, headers_alone = count(port, "error_page 502 504 = @unavailable;", upstream)
print(f"error_page with headers alone: {ends}, calls by attempts: {headers_alone}")
server.stop(None)
sys.exit(0 if set(own_page) - {4} and headers_alone == {4: CALLS} else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
