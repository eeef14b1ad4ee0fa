"""Pulsa: sells OTP credits and spends them."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Silences gRPC's own log, which is unstructured. gRPC reads this variable once, when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# A checkout has the stubs in clients/python, where a server without an installed pulsa-client finds them.
if find_spec("pulsa") is None:
    sys.path.append(str(Path(__file__).parents[1] / "clients" / "python"))
