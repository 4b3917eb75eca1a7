"""What the proxy counts, for its own `/metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Of one proxy, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.running = Gauge("trimtab:route_requests_running", "Requests that are being answered.", registry=own)
        self.requests = Counter(
            "trimtab:route_requests",
            "Requests that have ended: ok, refused (by proxy or server), lost (a server) or cancelled (by the client).",
            ("outcome",),
            registry=own,
        )
        self.tokens = Counter("trimtab:route_tokens", "Tokens of answers.", ("writer",), registry=own)
        self.share = Gauge("trimtab:route_large_share", "Share of all tokens that the large model wrote.", registry=own)
        self.share.set_function(self._share)
        self.switches = Counter("trimtab:route_switches", "Changes of the writer.", registry=own)
        self.uncertain = Counter(
            "trimtab:route_uncertain_tokens",
            "Tokens after which the exact entropy could have decided otherwise.",
            registry=own,
        )
        self.hand_over_seconds = Histogram(
            "trimtab:route_hand_over_seconds",
            "From a hand-over to the first token of the model that it was to.",
            ("to",),
            buckets=_SECONDS,
            registry=own,
        )
        self.errors = Counter(
            "trimtab:route_backend_errors",
            "Times that a server was lost: connect, timeout, torn or status.",
            ("backend", "reason"),
            registry=own,
        )
        self.instead = Counter(
            "trimtab:route_instead_tokens", "Tokens written for a model whose server was lost.", ("lost",), registry=own
        )

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def _share(self) -> float:
        small, large = (self.tokens.labels(writer)._value.get() for writer in ("small", "large"))
        return large / (small + large) if small + large else 0.0
