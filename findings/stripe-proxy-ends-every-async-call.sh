#!/bin/sh
# StripeClient(proxy=…) makes each async call a "network error", repeated in vain, without a connection to anything.
#
# stripe 16.1.0, httpx 0.28.1, Python 3.11.
#
# `proxy` is the client option that the SDK's readme names. A guess would be that it holds for the *_async calls as for
# the others. With httpx, which the SDK takes for them wherever it is installed, the proxy is given to the request as
# `proxies`, an argument that httpx has for a client only: TypeError. The SDK takes any exception there for a failed
# connection, says "If this problem persists, let us know", and repeats the call as often as it may. A service that must
# go through a proxy, moved from the calls without asyncio to those with it, so looks as if the network were down.
#
# What helps: HTTPS_PROXY in the environment instead of `proxy`, which httpx reads; or
# http_client=stripe.AIOHTTPClient(proxy=…).
#
# Seen:
#   stripe 16.1.0 httpx 0.28.1
#   proxy=…, without asyncio: in_1, 1 request to the proxy
#   proxy=…, async: APIConnectionError from TypeError after 2 repetitions, 0 requests to the proxy
#   the environment's proxy, async: in_1, 1 request to the proxy
#   AIOHTTPClient(proxy=…), async: in_1, 1 request to the proxy
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet \
    'stripe==16.1.0' 'httpx==0.28.1' 'anyio==4.16.0' 'aiohttp==3.14.5' 'requests==2.34.2'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from unittest import mock

import stripe

BODY = b'{"id": "in_1", "object": "invoice"}'
BASE = "http://stripe.example"  # a name that only the proxy knows
stripe.enable_telemetry = False
requests = []


class Proxy(BaseHTTPRequestHandler):
    """Answers for stripe.example."""

    def do_GET(self):
        requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


def client_with(**options):
    return stripe.StripeClient("sk_test_0", base_addresses={"api": BASE}, max_network_retries=2, **options)


def with_aiohttp():
    return client_with(http_client=stripe.AIOHTTPClient(proxy=proxy))


def told(name, outcome):
    assert set(requests) <= {BASE + "/v1/invoices/in_1"}
    print(f"{name}: {outcome}, {len(requests)} request{'s' * (len(requests) != 1)} to the proxy")
    outcomes.append((outcome, len(requests)))
    requests.clear()


async def retrieve(name, make):
    with mock.patch.object(stripe.HTTPClient, "_sleep_time_seconds", return_value=0) as pauses:
        client = make()
        try:
            outcome = (await client.v1.invoices.retrieve_async("in_1")).id
        except stripe.StripeError as error:
            cause = type(error.__cause__).__name__
            outcome = f"{type(error).__name__} from {cause} after {pauses.call_count} repetitions"
        told(name, outcome)
        await client._requestor._client.close_async()


server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
threading.Thread(target=server.serve_forever, daemon=True).start()
proxy = f"http://127.0.0.1:{server.server_port}"
for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
    os.environ.pop(name, None)
    os.environ.pop(name.lower(), None)
outcomes = []
print("stripe", version("stripe"), "httpx", version("httpx"))
told("proxy=…, without asyncio", client_with(proxy=proxy).v1.invoices.retrieve("in_1").id)
asyncio.run(retrieve("proxy=…, async", lambda: client_with(proxy=proxy)))
os.environ["HTTP_PROXY"] = proxy  # HTTPS_PROXY for Stripe itself
asyncio.run(retrieve("the environment's proxy, async", client_with))
del os.environ["HTTP_PROXY"]
asyncio.run(retrieve("AIOHTTPClient(proxy=…), async", with_aiohttp))
as_described = outcomes == [
    ("in_1", 1),
    ("APIConnectionError from TypeError after 2 repetitions", 0),
    ("in_1", 1),
    ("in_1", 1),
]
sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
