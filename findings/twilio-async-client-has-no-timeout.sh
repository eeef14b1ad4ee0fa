#!/bin/sh
# The timeout of Twilio's asyncio client is not used: a call waits for as long as the server is silent.
#
# twilio 9.13.0, aiohttp 3.14.5, Python 3.11.
#
# A guess would be that AsyncTwilioHttpClient(timeout=1) bounds each request to a second, as TwilioHttpClient(timeout=1)
# does, or that at worst aiohttp's own limit of five minutes holds. But the asyncio client keeps the number, and gives
# aiohttp the `timeout` of the single request, which the API calls have no argument for: None, and that is no limit at
# all. One silent host holds every task that sends, and its lease, until the connection dies.
#
# What helps: a subclass whose request() puts in self.timeout, or asyncio.timeout around each call.
#
# Seen:
#   twilio 9.13.0 aiohttp 3.14.5
#   a server that answers after 8 s, timeout=1:
#   TwilioHttpClient: ReadTimeout after 1 s
#   AsyncTwilioHttpClient: an answer after 8 s
#   the same, by a subclass that puts in self.timeout: TimeoutError after 1 s
#
# twilio/twilio-python has it as issue 925, open at this version.
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet \
    'twilio==9.13.0' 'aiohttp==3.14.5' 'aiohttp-retry==2.9.1' 'requests==2.34.2'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import requests
from twilio.http.async_http_client import AsyncTwilioHttpClient
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

SILENT, LIMIT = 8, 1
MESSAGE = {"to": "+447700900123", "from_": "+447700900456", "body": "Your code is 123456."}


class Silent(BaseHTTPRequestHandler):
    def do_POST(self):
        time.sleep(SILENT)
        try:
            self.send_response(201)
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b'{"sid": "SM"}')
        except OSError:
            pass

    def log_message(self, *_):
        pass


class Bounded(AsyncTwilioHttpClient):
    async def request(self, *arguments, timeout=None, **others):
        return await super().request(*arguments, timeout=timeout or self.timeout, **others)


def client_with(http):
    client = Client("AC0", "token", http_client=http)
    client.api.base_url = f"http://127.0.0.1:{server.server_port}"
    return client


def told(name, begin, outcome):
    seconds.append(round(time.monotonic() - begin))
    print(f"{name}: {outcome} after {seconds[-1]} s")


async def send(name, kind):
    http = kind(timeout=LIMIT)
    begin = time.monotonic()
    try:
        await client_with(http).messages.create_async(**MESSAGE)
        told(name, begin, "an answer")
    except TimeoutError as error:
        told(name, begin, type(error).__name__)
    await http.close()


server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
threading.Thread(target=server.serve_forever, daemon=True).start()
seconds = []
print("twilio", version("twilio"), "aiohttp", version("aiohttp"))
print(f"a server that answers after {SILENT} s, timeout={LIMIT}:")
begin = time.monotonic()
try:
    client_with(TwilioHttpClient(timeout=LIMIT)).messages.create(**MESSAGE)
    told("TwilioHttpClient", begin, "an answer")
except requests.Timeout as error:
    told("TwilioHttpClient", begin, type(error).__name__)
asyncio.run(send("AsyncTwilioHttpClient", AsyncTwilioHttpClient))
asyncio.run(send("the same, by a subclass that puts in self.timeout", Bounded))
sync, plain, bounded = seconds
sys.exit(0 if sync < SILENT and plain >= SILENT and bounded < SILENT else 1)
PYTHON
"$folder/venv/bin/python" -W ignore::DeprecationWarning "$folder/show.py"
