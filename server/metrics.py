"""Figures for Prometheus, on this host's loopback alone: what the ledger holds, and no more."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from .strategy import RoundRecord


class Metrics:
    """Metrics of a running federation.

    Args:
        port: on 127.0.0.1; 0: none are served.
    """

    def __init__(self, port: int) -> None:
        registry = CollectorRegistry()
        self._round = Gauge("fedprofile_round", "Last round that is done", registry=registry)
        self._online = Gauge("fedprofile_online", "Devices online", registry=registry)
        self._epsilon = Gauge("fedprofile_epsilon", "User-level ε spent", registry=registry)
        self._seconds = Gauge("fedprofile_round_seconds", "Of the last round", registry=registry)
        self._sampled = Counter("fedprofile_sampled", "Devices sampled", registry=registry)
        self._counted = Counter("fedprofile_counted", "Devices in a sum", registry=registry)
        self._rejected = Counter(
            "fedprofile_rejected", "Devices whose reply was refused", ["reason"], registry=registry
        )
        if port:
            start_http_server(port, addr="127.0.0.1", registry=registry)

    def online(self, devices: int) -> None:
        """Note how many devices are online."""
        self._online.set(devices)

    def after(self, record: RoundRecord, *, epsilon: float) -> None:
        """Note a round."""
        self._round.set(record.round)
        self._seconds.set(record.seconds)
        self._epsilon.set(epsilon)
        self._sampled.inc(record.sampled)
        self._counted.inc(record.trained)
        for reason, devices in record.rejected.items():
            self._rejected.labels(reason).inc(devices)
