"""What a server counts, in a Prometheus registry of its own."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STATES = (1, 2, 4, 8, 16, 32, 64, 128)


class Observer:
    """Counts for one server, whatever models it has.

    Attributes:
        registry: where all collectors are.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter("dina_lrm_requests", "Requests answered.", ("route", "status"), registry=self.registry)
        self._request_seconds = Histogram(
            "dina_lrm_request_seconds",
            "From a request's first byte to its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = Counter("dina_lrm_errors", "Requests refused or failed.", ("kind",), registry=self.registry)
        self.accepted = Gauge(
            "dina_lrm_accepted_states", "States accepted and not yet answered.", ("model",), registry=self.registry
        )
        self.states = Counter("dina_lrm_states", "States read.", ("model", "work"), registry=self.registry)
        self.batch_states = Histogram(
            "dina_lrm_batch_states", "States in a batch.", ("model", "work"), buckets=STATES, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "dina_lrm_queue_seconds",
            "From a task's arrival to its batch.",
            ("model", "work"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.service_seconds = Histogram(
            "dina_lrm_service_seconds",
            "Of one batch in the model.",
            ("model", "work"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompts = Counter(
            "dina_lrm_prompts",
            "Prompts asked for, by whether they were encoded before.",
            ("model", "cache"),
            registry=self.registry,
        )
        self.deaths = Counter("dina_lrm_worker_deaths", "Workers that died.", ("model",), registry=self.registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            route: its pattern, not the path asked for: strangers must not make time series.
            status: of HTTP.
            seconds: that it took.
        """
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a refusal or failure by the kind that its answer names."""
        self._errors.labels(kind).inc()

    def render(self) -> bytes:
        """All counts in Prometheus' text format."""
        return generate_latest(self.registry)


class EngineObserver:
    """Counts for one model; `forget` takes them away with it."""

    def __init__(self, observer: Observer, model: str) -> None:
        self._observer, self._model = observer, model
        self._accepted = observer.accepted.labels(model)
        self._deaths = observer.deaths.labels(model)
        self._kinds: dict[str, _KindObserver] = {}

    def accepted(self, states: int) -> None:
        """How many states are accepted and not yet answered."""
        self._accepted.set(states)

    def served(self, work: str, states: int, waited: Sequence[float], seconds: float) -> None:
        """Count a batch.

        Args:
            work: kind of work that it was.
            states: in it.
            waited: seconds that each task stood in line which began with this batch.
            seconds: in the model.
        """
        if work not in self._kinds:
            self._kinds[work] = _KindObserver(self._observer, self._model, work)
        self._kinds[work].served(states, waited, seconds)

    def prompts(self, known: int, new: int) -> None:
        """Count prompts that were looked up."""
        self._observer.prompts.labels(self._model, "hit").inc(known)
        self._observer.prompts.labels(self._model, "miss").inc(new)

    def died(self) -> None:
        """Count the death of a worker."""
        self._deaths.inc()

    def forget(self) -> None:
        """Take the model's series out of the registry."""
        for collector in (self._observer.accepted, self._observer.deaths):
            collector.remove(self._model)
        for cache in ("hit", "miss"):
            self._observer.prompts.remove(self._model, cache)
        for kind in self._kinds.values():
            kind.forget()


class _KindObserver:
    """Series of one model's one kind of work, looked up once."""

    def __init__(self, observer: Observer, *labels: str) -> None:
        self._labels = labels
        self._collectors = (observer.states, observer.batch_states, observer.queue_seconds, observer.service_seconds)
        self._states = observer.states.labels(*labels)
        self._batch_states = observer.batch_states.labels(*labels)
        self._queue_seconds = observer.queue_seconds.labels(*labels)
        self._service_seconds = observer.service_seconds.labels(*labels)

    def served(self, states: int, waited: Sequence[float], seconds: float) -> None:
        self._states.inc(states)
        self._batch_states.observe(states)
        self._service_seconds.observe(seconds)
        for one in waited:
            self._queue_seconds.observe(one)

    def forget(self) -> None:
        for collector in self._collectors:
            collector.remove(*self._labels)
