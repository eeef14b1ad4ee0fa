#!/bin/sh
# One login() with a wrong password is several failed logins for the relay.
#
# aiosmtplib 5.1.3, aiosmtpd 1.4.6, Python 3.11.
#
# A guess would be that a refused password (535) ends login(). aiosmtplib tries it again with each mechanism that both
# sides know, so that one wrong password in one connection counts two or three times where a relay counts failed logins:
# with a limit of five, two mails that are sent at once lock the account.
#
# What helps: choose one mechanism that the server offers (`supported_auth_methods`) and call auth_plain or auth_login.
#
# Seen:
#   aiosmtplib 5.1.3
#   login(): 2 failed logins, by LOGIN and PLAIN, then SMTPAuthenticationError 535
#   auth_plain(): 1 failed login, then SMTPAuthenticationError 535
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'aiosmtplib==5.1.3' 'aiosmtpd==1.4.6'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import socket
import sys
import warnings

import aiosmtplib
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

warnings.simplefilter("ignore")  # that this relay takes passwords without TLS
tried = []


def refuse(server, session, envelope, mechanism, credentials):
    tried.append(mechanism)
    return AuthResult(success=False, handled=False)


async def failed_logins(log_in):
    tried.clear()
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False)
    await client.connect()
    await client.ehlo()
    try:
        await log_in(client)
    except aiosmtplib.SMTPAuthenticationError as error:
        code = error.code
    client.close()
    return sorted(tried), code


with socket.create_server(("127.0.0.1", 0)) as unused:
    port = unused.getsockname()[1]
relay = Controller(object(), "127.0.0.1", port, authenticator=refuse, auth_require_tls=False)
relay.start()
print("aiosmtplib", aiosmtplib.__version__)
by_login, code = asyncio.run(failed_logins(lambda client: client.login("user", "wrong")))
print(f"login(): {len(by_login)} failed logins, by {' and '.join(by_login)}, then SMTPAuthenticationError {code}")
by_plain, code = asyncio.run(failed_logins(lambda client: client.auth_plain("user", "wrong")))
print(f"auth_plain(): {len(by_plain)} failed login, then SMTPAuthenticationError {code}")
relay.stop()
sys.exit(0 if (by_login, by_plain, code) == (["LOGIN", "PLAIN"], ["PLAIN"], 535) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
