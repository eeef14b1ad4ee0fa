"""Pulsa: sells OTP credits and spends them."""

import os

# gRPC writes lines of its own beside our log, in no format; it asks this once, when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
