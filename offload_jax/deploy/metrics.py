"""What a decision service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from offload_jax.deploy.decide import Answer

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ServiceMetrics:
    """One registry for each service, so that two in a process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"offload_jax_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"offload_jax_{name}", text, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Requests by their HTTP status.", "status")
        self.plans = counter("plans", "Plans by who made them.", "source")
        self.strange = counter("out_of_range", "Instances outside of the trained ranges.")
        self.users = counter("users", "Users decided, by what they got.", "decision")
        self.latency = histogram("request_seconds", "From a request to its answer.", SECONDS)
        self.computing = histogram("batch_seconds", "To decide a batch of instances.", SECONDS)
        self.batch = histogram(
            "batch_instances", "Instances in a batch.", (1.0, 2.0, 4.0, 8.0, 16.0)
        )
        prices = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
        self.price = histogram("price", "Highest price of a plan's servers, s/GPU-s.", prices)
        text = "Instances that wait to be decided."
        self.waiting = Gauge("offload_jax_waiting_instances", text, registry=registry)

    def decided(self, answers: list[Answer], seconds: float) -> None:
        """Counts a batch."""
        self.computing.observe(seconds)
        self.batch.observe(len(answers))
        for answer in answers:
            self.plans.labels(answer.source).inc()
            granted = int((answer.plan.assignment > 0).sum())
            self.users.labels("granted").inc(granted)
            self.users.labels("denied").inc(len(answer.plan.assignment) - granted)
            self.price.observe(float(answer.price.max(initial=0)))
            if any("trained range" in note for note in answer.notes):
                self.strange.inc()

    def page(self) -> bytes:
        """All of it in Prometheus's text format."""
        return bytes(generate_latest(self.registry))
