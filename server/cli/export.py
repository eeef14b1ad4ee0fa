"""`export`: writes an organization's ledger to a file, as CSV or Parquet, and goes on where it was interrupted."""

import argparse
import asyncio
import os
import re
import sys
import time
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Final

from server.cli.database import add_organization_arguments, existing_database
from server.composition import timeouts_of
from server.credits.statement import Position, export_ledger
from server.environment import SettingsError, load_settings
from server.postgres.pool import open_pool
from server.settings import Settings

_ENTRY: Final = re.compile(rb"[0-9]{4}-[0-9]{2},[A-Z_]+,(?P<sequence>[0-9]+),[^\n]*\n")
_TAIL_BYTES: Final = 1 << 20
"""More than the lines of the balances that can follow the last entry."""
_BLOCK_BYTES: Final = 1 << 24
"""Of the CSV that becomes one row group."""
_PROGRESS_SECONDS: Final = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    add_organization_arguments(parser)
    parser.add_argument("file", type=Path, help="the file to write; until it is complete, its name ends in .partial")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    for name, explanation in (("start", "that of the first entry"), ("end", "the current one")):
        parser.add_argument(f"--{name}", type=_month, metavar="YYYY-MM", help=f"month in UTC; by default {explanation}")


def export(arguments: argparse.Namespace) -> None:
    """`export`: write the ledger and print the progress. A repeat continues what was interrupted."""
    settings = load_settings(os.environ)
    pyarrow = _import_pyarrow() if arguments.format == "parquet" else None
    months = (arguments.start or "", arguments.end or "")
    file: Path = arguments.file
    partial = file.with_name(".".join([file.name, arguments.organization, *months, "partial"]))
    with (
        existing_database(settings, writes=False) as url,
        partial.open("r+b" if partial.exists() else "w+b") as output,
    ):
        asyncio.run(_write(settings, url, arguments.organization, months, output))
    if pyarrow is None:
        partial.replace(file)
    else:
        converted = partial.with_suffix(".parquet")
        _convert(pyarrow, partial, converted)
        converted.replace(file)
        partial.unlink()


async def _write(settings: Settings, url: str, organization_id: str, months: tuple[str, str], output: BinaryIO) -> None:
    """Write the CSV behind the last whole entry in `output`."""
    resume = _resume(output)
    printed = time.monotonic()
    pool = await open_pool(url, size=1, timeouts=timeouts_of(settings.database), read_only=True)
    try:
        async with aclosing(export_ledger(pool, organization_id, *months, resume=resume)) as parts:
            async for part in parts:
                output.write(part.csv)
                if part.position is None or time.monotonic() >= printed + _PROGRESS_SECONDS:
                    printed = time.monotonic()
                    print(f"{part.exported_entries} of {part.total_entries} entries", file=sys.stderr, flush=True)
    finally:
        await pool.close()


def _resume(output: BinaryIO) -> Position | None:
    """Cut off what follows the last whole entry, and return its position; None when there is no entry."""
    size = output.seek(0, os.SEEK_END)
    begin = output.seek(max(0, size - _TAIL_BYTES))
    entries = list(_ENTRY.finditer(output.read()))
    output.seek(begin + entries[-1].end() if entries else 0)
    output.truncate()
    return Position(0, int(entries[-1]["sequence"])) if entries else None


def _convert(pyarrow: ModuleType, source: Path, target: Path) -> None:
    """Write the CSV as Parquet, a block at a time."""
    types = {
        **dict.fromkeys(("sequence", "credits", "balance"), pyarrow.int64()),
        "create_time": pyarrow.timestamp("us", tz="UTC"),
        "total": pyarrow.decimal128(24, 4),
    }
    texts = ("month", "kind", "reference_id", "reason", "created_by", "invoice_number", "currency_code")
    reader = pyarrow.csv.open_csv(
        source,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types | dict.fromkeys(texts, pyarrow.string()), timestamp_parsers=[pyarrow.csv.ISO8601]
        ),
    )
    with pyarrow.parquet.ParquetWriter(target, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _import_pyarrow() -> ModuleType:
    try:
        import pyarrow.csv  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--format parquet needs pyarrow ({error.name}): pip install 'pulsa-server[export]'"
        ) from None
    module: ModuleType = pyarrow
    return module


def _month(text: str) -> str:
    if not re.fullmatch("[1-9][0-9]{3}-(?:0[1-9]|1[0-2])", text):
        raise argparse.ArgumentTypeError("not a month as YYYY-MM")
    return text
