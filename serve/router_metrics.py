"""The counters that a router tells Prometheus."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from .backends import Backend


class RouterMetrics:
    """The counters of one router, by server."""

    def __init__(self, backends: Sequence[Backend]):
        self._registry = CollectorRegistry()

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"camelid_router:{name}", said, ["server", *labels], registry=self._registry)

        self._requests = counter("requests", "Responses of servers, by status", "status")
        self._retries = counter("retries", "Requests that a server did not answer, by reason", "reason")
        self._lost = counter("lost_answers", "Answers that ended in their middle, since the server was lost")
        for name, said, read in (
            ("requests_active", "Requests that a server is answering", lambda backend: backend.active),
            ("server_well", "Whether a server takes requests", lambda backend: backend.well),
        ):
            gauge = Gauge(f"camelid_router:{name}", said, ["server"], registry=self._registry)
            for each in backends:
                gauge.labels(each.name).set_function(lambda backend=each, read=read: read(backend))

    def answered(self, backend: Backend, status: int) -> None:
        """Counts a response of a server."""
        self._requests.labels(backend.name, str(status)).inc()

    def retried(self, backend: Backend, reason: str) -> None:
        """Counts a request that goes to another server, or gets an error where none is left."""
        self._retries.labels(backend.name, reason).inc()

    def lost(self, backend: Backend) -> None:
        """Counts an answer that has ended in its middle."""
        self._lost.labels(backend.name).inc()

    def page(self) -> bytes:
        """All counters in Prometheus's text format."""
        return generate_latest(self._registry)
