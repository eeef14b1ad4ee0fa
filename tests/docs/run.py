"""`make test-docs`: runs every command of README.md and docs/ as written, in a clean checkout with a clean environment.

`python -m tests.docs.run [DOCUMENT ...]`: each document is a session of its own: one shell, from top to bottom, in one
fresh clone of this repository's HEAD. Tests of single blocks are chosen in the documents; see blocks.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.docs.blocks import Block, code_blocks

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = ("README.md", "docs/api.md", "docs/operations.md", "CONTRIBUTING.md")
_BLOCK_SECONDS: Final = 600.0
_STOP_SECONDS: Final = 60.0


class DocumentError(Exception):
    """A block did not do what its document says."""


class Shell:
    """One bash that keeps its variables and its folder from block to block."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._variables = folder / ".variables"
        self._variables.unlink(missing_ok=True)  # a document before this one kept its own
        self._background: list[subprocess.Popen[bytes]] = []

    def run(self, text: str) -> str:
        """The output of the commands. Raises DocumentError when one fails."""
        done = subprocess.run(  # noqa: S603 - the commands of our own documents
            ["/bin/bash", "-c", self._script(text)],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_BLOCK_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise DocumentError(f"exit code {done.returncode}:\n{done.stdout[-3000:]}")
        return done.stdout

    def start(self, text: str, until: str) -> None:
        """Start the commands and return once they have printed `until`. Raises DocumentError when they end before."""
        process = subprocess.Popen(  # noqa: S603 - the commands of our own documents
            ["/bin/bash", "-c", f"{self._script(text)}\ntrap '' INT\nwait"],  # for commands that end with &
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._background.append(process)
        printed, found = bytearray(), threading.Event()

        def read() -> None:
            assert process.stdout is not None
            while chunk := os.read(process.stdout.fileno(), 65536):
                printed.extend(chunk)
                if until.encode() in printed:
                    found.set()
            found.set()

        threading.Thread(target=read, daemon=True).start()
        if not found.wait(_BLOCK_SECONDS) or until.encode() not in printed:
            raise DocumentError(f"did not print {until!r}:\n{printed.decode(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """Interrupt what runs in the background, newest first, and wait. Raises DocumentError if one stays."""
        lasting = 0
        for process in reversed(self._background):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    lasting += 1
                    os.killpg(process.pid, signal.SIGKILL)
        self._background.clear()
        if lasting:
            raise DocumentError(f"{lasting} background blocks did not end after Ctrl-C")

    def _script(self, text: str) -> str:
        keep = f"{{ declare -px; declare -f; }} > {self._variables}"
        return f"set -euo pipefail\n[ -f {self._variables} ] && . {self._variables} 2>/dev/null\n{text}\n{keep}"


def test_document(document: Path, checkout: Path, environment: dict[str, str]) -> int:
    """Run the document's blocks; returns how many. Raises DocumentError, with the place in its text."""
    shell, count = Shell(checkout, environment), 0
    try:
        for block in code_blocks(document):
            began = time.monotonic()
            try:
                if _test(block, shell, checkout):
                    count += 1
                    print(f"  {document.name}:{block.line} {time.monotonic() - began:.1f} s", flush=True)  # noqa: T201
            except (DocumentError, subprocess.TimeoutExpired) as error:
                raise DocumentError(f"{document}:{block.line}: {error}") from error
        shell.stop()
    finally:
        with suppress(DocumentError):  # another error is on its way, or this one is
            shell.stop()
    return count


def _test(block: Block, shell: Shell, folder: Path) -> bool:
    match block.kind:
        case "run":
            shell.run(block.text)
        case "prints":
            printed = shell.run(block.text)
            if block.argument not in printed:
                raise DocumentError(f"did not print {block.argument!r}:\n{printed[-3000:]}")
        case "background until":
            shell.start(block.text, block.argument)
        case "file":
            (folder / block.argument).write_text(block.text)
        case "no,":
            return False
        case _:
            raise DocumentError("a code block without a test comment")
    return True


@contextmanager
def _clean_checkout() -> Iterator[tuple[Path, dict[str, str]]]:
    """A fresh clone and an environment with a PATH, an empty home and nothing else."""
    with tempfile.TemporaryDirectory(prefix="pulsa-docs-") as folder:
        checkout, home = Path(folder, "pulsa"), Path(folder, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)  # noqa: S603, S607 - ours
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        yield checkout, {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", **kept}


def main() -> int:
    """Test the documents that are named, or all; 0 when every block did what its document says."""
    documents = [ROOT / name for name in sys.argv[1:] or DOCUMENTS]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits it as ignored
    with _clean_checkout() as (checkout, environment):
        failed = 0
        for document in documents:
            print(f"{document.name}:", flush=True)  # noqa: T201
            shutil.rmtree(checkout / "data", ignore_errors=True)  # what a document before this one bought and sent
            subprocess.run(["git", "clean", "-d", "--force", "--quiet"], cwd=checkout, check=True)  # noqa: S607 - its files
            try:
                count = test_document(checkout / document.relative_to(ROOT), checkout, environment)
            except DocumentError as error:
                failed += 1
                print(f"  FAILED {error}", flush=True)  # noqa: T201
            else:
                print(f"  {count} blocks did what the document says", flush=True)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
