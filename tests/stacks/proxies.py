"""nginx and HAProxy before a server, with the settings of docs/operations.md."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.faults.processes import CHECKOUT, free_ports, listens
from tests.waiting import until

_SBIN: Final = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
_SETTINGS: Final = (CHECKOUT / "docs" / "operations.md").read_text()
_NGINX: Final = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; events {{ }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
{settings}
}}
"""


@asynccontextmanager
async def proxy(kind: str, address: str, folder: Path) -> AsyncIterator[str]:
    """The address of a proxy before the server; the server's own for "direct"."""
    if kind == "direct":
        yield address
        return
    program = shutil.which(kind, path=_SBIN) or pytest.skip(f"{kind} is not installed")
    (port,) = free_ports(1)
    found = re.search(rf"```{kind}\n(.*?)```", _SETTINGS, re.DOTALL)
    assert found
    settings = re.sub(r".*127\.0\.0\.1:50052.*\n", "", found[1])
    settings = settings.replace("127.0.0.1:50051", address).replace("127.0.0.1:8443", f"127.0.0.1:{port}")
    file = folder / kind
    file.write_text(_NGINX.format(folder=folder, settings=settings) if kind == "nginx" else settings)
    arguments = ("-c", str(file)) if kind == "nginx" else ("-db", "-f", str(file))
    process = await asyncio.create_subprocess_exec(program, *arguments, stderr=asyncio.subprocess.DEVNULL)
    try:
        await until(lambda: listens(port))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()
