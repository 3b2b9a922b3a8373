"""What a router tells Prometheus: counters of its own, and those of its servers with a label for the server."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

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

    def page(self, pages: Mapping[str, str]) -> bytes:
        """All counters in Prometheus's text format. pages: those of servers, by their names."""
        return generate_latest(self._registry) + generate_latest(_Merged(pages))


class _Merged(CollectorRegistry):
    """The metrics of several servers, which tell the server as a label."""

    def __init__(self, pages: Mapping[str, str]):
        super().__init__()
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        """All metrics, each once with the samples of all servers, without times, which may be no numbers."""
        found: dict[str, Metric] = {}
        for server, page in self._pages.items():
            with suppress(ValueError):  # a server of another kind, whose page is none
                for family in text_string_to_metric_families(page):
                    metric = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                    for sample in family.samples:
                        metric.samples.append(
                            sample._replace(labels={"server": server} | sample.labels, timestamp=None)
                        )
        yield from found.values()
