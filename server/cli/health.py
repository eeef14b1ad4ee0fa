"""`health`: asks the server on this machine how it is, for the health check of a container or a service."""

import argparse
import os
import ssl
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

from server.api.server import LIVENESS
from server.environment import load_settings

_SECONDS = 3.0
_SERVING = health_pb2.HealthCheckResponse.SERVING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("service", nargs="?", default=LIVENESS, help="liveness (the default), readiness or database")


def health(arguments: argparse.Namespace) -> int:
    """Ask the server at the port of PULSA_LISTEN; return 0 when the service is SERVING, 1 otherwise.

    With TLS it only asks whether the port answers a handshake: this command has no certificate of a client.
    """
    settings = load_settings(os.environ)
    host, _, port = settings.listen.rpartition(":")
    address = "127.0.0.1" if host in {"0.0.0.0", "[::]"} else host.strip("[]")  # noqa: S104 - compared, not listened on
    try:
        if settings.tls.certificate:
            ssl.get_server_certificate((address, int(port)), timeout=_SECONDS)
            return 0
        with grpc.insecure_channel(f"{address}:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(service=arguments.service), timeout=_SECONDS)
    except (grpc.RpcError, OSError) as error:
        print(f"{address}:{port} does not answer: {type(error).__name__}", file=sys.stderr)
        return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == _SERVING else 1
