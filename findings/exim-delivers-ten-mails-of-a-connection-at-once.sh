#!/bin/sh
# Of the mails that one connection brings, Exim delivers ten at once; the others wait for its next queue run.
#
# Exim 4.96 (exim4-daemon-light), aiosmtplib 5.1.3, Python 3.11, Debian 12.
#
# A guess would be that a mail that was answered 250 is on its way, whichever of the connection it is. But from the
# eleventh on (smtp_accept_queue_per_connection, 10 by default, and Debian's configuration leaves it so) Exim starts no
# delivery: the mail lies in the queue until a queue runner comes, which Debian starts every 30 minutes. A sender that
# keeps its connection, as a pool does, so sends ten codes in time, and then only codes that have expired. The answers
# do not differ, nor does the end of the connection help.
#
# What helps: smtp_accept_queue_per_connection = 0 in Exim; or at most ten mails per connection.
#
# Seen:
#   Exim 4.96, 30 mails in one connection, all answered 250
#   as configured by default: 10 delivered after 10 s, 10 after the connection ended
#   10 mails per connection: 30 delivered after 10 s
#   smtp_accept_queue_per_connection = 0: 30 delivered after 10 s
#
# Exit code 0 while the behaviour is as described, 1 when it has changed. Needs Debian 12 with apt-get.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'aiosmtplib==5.1.3'
(cd "$folder" && apt-get download --quiet --quiet exim4-daemon-light libpcre2-8-0 libidn12 libunbound8 libevent-2.1-7 \
    libnss-wrapper 2>/dev/null)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from email.message import EmailMessage

import aiosmtplib

FOLDER = pathlib.Path(sys.argv[1])
LIBRARIES = FOLDER / "debian/usr/lib/x86_64-linux-gnu"
MAILS = 30
USER, GROUP = (65534, 65534) if os.getuid() == 0 else (os.getuid(), os.getgid())
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups"] if os.getuid() == 0 else []
CONFIGURATION = """
exim_path = {folder}/exim
exim_user = {user}
exim_group = {group}
primary_hostname = mail.example
spool_directory = {work}
log_file_path = {work}/%slog
pid_file_path = {work}/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
keep_environment = LD_LIBRARY_PATH : LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
never_users =
{option}
acl_smtp_rcpt = accept
begin acl
accept:
  accept
begin routers
all:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  file = {work}/mailbox
begin retry
*  *  F,2h,15m
"""


def start(work, port, option):
    configuration = FOLDER / "configuration"
    configuration.write_text(CONFIGURATION.format(
        folder=FOLDER, user=USER, group=GROUP, work=work, port=port, option=option))
    environment = os.environ | {"LD_LIBRARY_PATH": str(LIBRARIES), "LD_PRELOAD": str(LIBRARIES / "libnss_wrapper.so"),
                                "NSS_WRAPPER_PASSWD": f"{FOLDER}/passwd", "NSS_WRAPPER_GROUP": f"{FOLDER}/group"}
    # A daemon, which runs the queue every 30 minutes.
    return subprocess.Popen([*AS_USER, FOLDER / "exim", "-C", configuration, "-bdf", "-q30m"], env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def connect(port):
    for _ in range(100):
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False)
        try:
            await client.connect()
        except aiosmtplib.SMTPConnectError:
            await asyncio.sleep(0.1)
        else:
            return client
    sys.exit("Exim did not start")


async def delivered(option="", per_connection=MAILS):
    work = FOLDER / "work"
    work.mkdir()
    os.chown(work, USER, GROUP)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    exim = start(work, port, option)
    try:
        for number in range(MAILS):
            if number % per_connection == 0:
                if number:
                    await client.quit()
                client = await connect(port)
            mail = EmailMessage()
            mail["From"], mail["To"], mail["Subject"] = "codes@mail.example", f"{number}@mail.example", "Your code"
            mail.set_content("123456")
            await client.send_message(mail)
        counts = []
        for _ in range(2):
            await asyncio.sleep(10)
            mailbox = work / "mailbox"
            counts.append(mailbox.read_text().count("Subject: Your code") if mailbox.exists() else 0)
            if client.is_connected:
                await client.quit()
    finally:
        exim.terminate()
        exim.wait()
    shutil.rmtree(work)
    return counts


async def main():
    version = subprocess.run(["dpkg-deb", "-f", next(FOLDER.glob("exim4-daemon*.deb")), "Version"], check=True,
                             capture_output=True, text=True).stdout.split("-")[0]
    print(f"Exim {version}, {MAILS} mails in one connection, all answered 250", flush=True)
    default = await delivered()
    print(f"as configured by default: {default[0]} delivered after 10 s, {default[1]} after the connection ended",
          flush=True)
    tens = await delivered(per_connection=10)
    print(f"10 mails per connection: {tens[0]} delivered after 10 s", flush=True)
    unlimited = await delivered("smtp_accept_queue_per_connection = 0")
    print(f"smtp_accept_queue_per_connection = 0: {unlimited[0]} delivered after 10 s")
    return 0 if (default, tens[0], unlimited[0]) == ([10, 10], MAILS, MAILS) else 1


shutil.copy(FOLDER / "debian/usr/sbin/exim4", FOLDER / "exim")  # without its set-user-ID bit
(FOLDER / "exim").chmod(0o755)
# Debian's Exim looks for its own user, which libnss-wrapper shows it.
(FOLDER / "passwd").write_text(f"root:x:0:0::/:/bin/sh\nDebian-exim:x:{USER}:{GROUP}::/:/bin/sh\n")
(FOLDER / "group").write_text(f"root:x:0:\nDebian-exim:x:{GROUP}:\n")
sys.exit(asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
