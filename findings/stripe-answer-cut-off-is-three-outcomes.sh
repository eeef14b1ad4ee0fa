#!/bin/sh
# A Stripe answer that is cut off is repeated with httpx, is an error with requests, and with aiohttp no StripeError.
#
# stripe 16.1.0, httpx 0.28.1, aiohttp 3.14.5, requests 2.34.2, Python 3.11.
#
# With max_network_retries=2 a guess would be that a connection lost within the answer is the same for each of the SDK's
# HTTP clients: a connection error, repeated with the same idempotency key, and an APIConnectionError at last. That is
# so with httpx. requests raises ChunkedEncodingError, which the SDK does not count among the errors to repeat. With
# aiohttp the SDK reads the body after the part that translates errors: neither is the call repeated, nor does
# `except stripe.StripeError` see ClientPayloadError or, for an answer that stalls, TimeoutError. In all three cases
# Stripe has made the invoice.
#
# What helps: with AIOHTTPClient, treat aiohttp.ClientError and TimeoutError as stripe.APIConnectionError, and repeat
# with an idempotency key of your own.
#
# Seen:
#   stripe 16.1.0 httpx 0.28.1 aiohttp 3.14.5 requests 2.34.2
#   the connection is closed within the first answer, max_network_retries=2:
#   httpx: in_1, 2 requests, 1 idempotency key
#   aiohttp: ClientPayloadError, no StripeError, 1 request, 1 idempotency key
#   requests: APIConnectionError, a StripeError, 1 request, 1 idempotency key
#   the first answer stalls, and the timeout is 1 s:
#   httpx: in_1, 2 requests, 1 idempotency key
#   aiohttp: TimeoutError, no StripeError, 1 request, 1 idempotency key
#   requests: in_1, 2 requests, 1 idempotency key
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet \
    'stripe==16.1.0' 'httpx==0.28.1' 'anyio==4.16.0' 'aiohttp==3.14.5' 'requests==2.34.2' 'urllib3==2.8.0'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import stripe

BODY = b'{"id": "in_1", "object": "invoice"}'
PACKAGES = ("stripe", "httpx", "aiohttp", "requests")
HTTP = {"httpx": stripe.HTTPXClient, "aiohttp": stripe.AIOHTTPClient, "requests": stripe.RequestsClient}
stripe.enable_telemetry = False
keys, pause = [], 0


class CutsTheFirstAnswer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        keys.append(self.headers["Idempotency-Key"])
        first = len(keys) == 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:10] if first else BODY)
        self.wfile.flush()
        if first:
            time.sleep(pause)
        self.close_connection = True

    def log_message(self, *_):
        pass


async def outcome_of(name):
    keys.clear()
    http = HTTP[name](timeout=1)
    address = f"http://127.0.0.1:{server.server_port}"
    client = stripe.StripeClient(
        "sk_test_0", base_addresses={"api": address}, http_client=http, max_network_retries=2
    )
    try:
        if name == "requests":
            invoice = await asyncio.to_thread(client.v1.invoices.create, {"customer": "cus_1"})
        else:
            invoice = await client.v1.invoices.create_async({"customer": "cus_1"})
        outcome = invoice.id
    except stripe.StripeError as error:
        outcome = f"{type(error).__name__}, a StripeError"
    except Exception as error:
        outcome = f"{type(error).__name__}, no StripeError"
    if name != "requests":
        await http.close_async()
    requests = f"{len(keys)} request{'s' * (len(keys) > 1)}, {len(set(keys))} idempotency key"
    print(f"{name}: {outcome}, {requests}")
    return outcome, len(keys)


server = ThreadingHTTPServer(("127.0.0.1", 0), CutsTheFirstAnswer)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(*(f"{package} {version(package)}" for package in PACKAGES))
outcomes = []
print("the connection is closed within the first answer, max_network_retries=2:")
outcomes += [asyncio.run(outcome_of(name)) for name in HTTP]
print("the first answer stalls, and the timeout is 1 s:")
pause = 4
outcomes += [asyncio.run(outcome_of(name)) for name in HTTP]
as_described = outcomes == [
    ("in_1", 2),
    ("ClientPayloadError, no StripeError", 1),
    ("APIConnectionError, a StripeError", 1),
    ("in_1", 2),
    ("TimeoutError, no StripeError", 1),
    ("in_1", 2),
]
sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
