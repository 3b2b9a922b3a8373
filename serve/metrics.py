"""The counters that a server tells Prometheus, with vLLM's names under the prefix `camelid:`."""

from collections.abc import Mapping

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .completions import Job, Served

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self, served: Mapping[str, Served]):
        self._registry, label = CollectorRegistry(), ["model_name"]

        def counter(name: str, said: str, labels: list[str] = label) -> Counter:
            return Counter(f"camelid:{name}", said, labels, registry=self._registry)

        def histogram(name: str, said: str) -> Histogram:
            return Histogram(f"camelid:{name}", said, label, registry=self._registry, buckets=SECONDS)

        self._requests = counter("request_success", "Answers that ended, by reason", [*label, "finished_reason"])
        self._failures = counter("request_failure", "Requests that got an error, by status", ["status"])
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._cached = counter("prefix_cache_hits", "Tokens of prompts that were copied instead of read")
        self._written = counter("generation_tokens", "Tokens of answers")
        self._first = histogram("time_to_first_token_seconds", "From a request to the first token of an answer")
        self._compilations = Counter("camelid:compilations", "Programs compiled so far", registry=self._registry)
        for gauge, said, read in (
            ("num_requests_running", "Answers that have a row", lambda engine: engine.running),
            ("num_requests_waiting", "Answers that wait for a row", lambda engine: engine.waiting),
            ("num_preemptions", "Times that an answer made room for another", lambda engine: engine.preemptions),
            ("prefix_blocks", "Chunks of prompts that are kept", lambda engine: engine.kept_blocks),
        ):
            made = Gauge(f"camelid:{gauge}", said, label, registry=self._registry)
            for name in (name for name, each in served.items() if each.parent is None):
                made.labels(name).set_function(lambda engine=served[name].engine, read=read: read(engine))
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, *_, **__) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compilations.inc()

    def failed(self, status: int) -> None:
        """Counts a request that got an error."""
        self._failures.labels(str(status)).inc()

    def count(self, job: Job) -> None:
        """Counts a request that was answered, or whose client has left."""
        name, usage = job.served.name, job.usage()
        for answer in job.answers:
            self._requests.labels(name, answer.finish_reason or "cancelled").inc()
            if answer.first_token is not None:
                self._first.labels(name).observe(answer.first_token - answer.submitted)
        self._prompt.labels(name).inc(usage["prompt_tokens"])
        self._cached.labels(name).inc(usage["prompt_tokens_details"]["cached_tokens"])
        self._written.labels(name).inc(usage["completion_tokens"])

    def page(self) -> bytes:
        """All counters in Prometheus's text format."""
        return generate_latest(self._registry)
