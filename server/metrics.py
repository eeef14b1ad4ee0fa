"""The HTTP endpoint of the Prometheus metrics."""

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from server.environment import SettingsError


def serve_metrics(listen: str, *, worker_files: str | None = None) -> None:
    """Serve `GET /metrics` at `host:port` from a thread, until the process ends; do nothing for `off`.

    `worker_files` is the folder in which worker processes write their metrics: the endpoint then serves their sums.
    Raises SettingsError when it cannot listen there.
    """
    if listen == "off":
        return
    registry = REGISTRY
    if worker_files is not None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=worker_files)  # type: ignore[no-untyped-call]
    host, _, port = listen.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise SettingsError(f"PULSA_METRICS_LISTEN: {listen} cannot be listened on: {error.strerror}") from None
