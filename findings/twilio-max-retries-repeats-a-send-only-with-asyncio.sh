#!/bin/sh
# With the same max_retries=3, Twilio's asyncio client posts one SMS three times, and the other client once.
#
# twilio 9.13.0, aiohttp-retry 2.9.1, requests 2.34.2, Python 3.11.
#
# Both clients document the argument in the same words. A guess would be what TwilioHttpClient does: it gives the number
# to urllib3, which repeats a POST only when no connection was made, so that no message can be doubled. But
# AsyncTwilioHttpClient gives it to aiohttp_retry, which repeats every method after any 5xx, and not after a connection
# that was never made. A 500 or a gateway's 504 does not say that nothing was sent: where it was, the phone gets the
# message three times. The number is of attempts there, not of repetitions.
#
# What helps: no max_retries with AsyncTwilioHttpClient; repeat only what surely was not sent.
#
# Seen:
#   twilio 9.13.0 aiohttp-retry 2.9.1 requests 2.34.2
#   max_retries=3, a server that takes the SMS and answers 504, one call of messages.create each:
#   TwilioHttpClient: TwilioRestException, 1 SMS taken
#   AsyncTwilioHttpClient: TwilioRestException, 3 SMS taken
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet \
    'twilio==9.13.0' 'aiohttp==3.14.5' 'aiohttp-retry==2.9.1' 'requests==2.34.2' 'urllib3==2.8.0' 'trustme==1.2.1'
"$folder/venv/bin/python" -m trustme --quiet --dir "$folder" --identities localhost
export REQUESTS_CA_BUNDLE="$folder/client.pem" SSL_CERT_FILE="$folder/client.pem"
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from twilio.base.exceptions import TwilioRestException
from twilio.http.async_http_client import AsyncTwilioHttpClient
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

MESSAGE = {"to": "+447700900123", "from_": "+447700900456", "body": "Your code is 123456."}
taken = []


class TakesAndFails(BaseHTTPRequestHandler):
    def do_POST(self):
        taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(504)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def client_with(http):
    client = Client("AC0", "token", http_client=http)
    client.api.base_url = f"https://localhost:{server.server_port}"
    return client


def without_asyncio():
    client_with(TwilioHttpClient(max_retries=3, timeout=10)).messages.create(**MESSAGE)


async def with_asyncio():
    http = AsyncTwilioHttpClient(max_retries=3)
    try:
        await client_with(http).messages.create_async(**MESSAGE)
    finally:
        await http.close()


def count(name, send):
    taken.clear()
    try:
        send()
        outcome = "no error"
    except TwilioRestException as error:
        outcome = type(error).__name__
    assert len(set(taken)) == 1
    print(f"{name}: {outcome}, {len(taken)} SMS taken")
    return len(taken)


folder = sys.argv[1]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{folder}/server.pem", f"{folder}/server.key")
server = ThreadingHTTPServer(("127.0.0.1", 0), TakesAndFails)
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("twilio", version("twilio"), "aiohttp-retry", version("aiohttp-retry"), "requests", version("requests"))
print("max_retries=3, a server that takes the SMS and answers 504, one call of messages.create each:")
counts = [
    count("TwilioHttpClient", without_asyncio),
    count("AsyncTwilioHttpClient", lambda: asyncio.run(with_asyncio())),
]
sys.exit(0 if counts == [1, 3] else 1)
PYTHON
"$folder/venv/bin/python" -W ignore::DeprecationWarning "$folder/show.py" "$folder"
