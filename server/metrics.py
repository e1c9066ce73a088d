"""Figures for Prometheus, on this host's loopback alone: what the ledger holds, and no more.

A server that was started again goes on with the ledger's figures: ε that falls to 0 would be taken for
what was spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from ..common.ledger_entries import Commit, Entry, Reserve
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
        self._epsilon = Gauge(
            "fedprofile_epsilon",
            "User-level ε spent, but for a release under way",
            registry=registry,
        )
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

    def spent(self, epsilon: float) -> None:
        """Note what was spent by now."""
        self._epsilon.set(epsilon)

    def resume(self, entries: Iterable[Entry]) -> None:
        """Note the rounds that a ledger tells of."""
        rounds: dict[int, int] = {}
        for entry in entries:
            if isinstance(entry, Reserve) and entry.round:
                rounds[entry.sequence] = entry.round
            elif isinstance(entry, Commit) and entry.release in rounds:
                self._round.set(rounds[entry.release])
                self._count(entry.cohort_size, entry.replies_counted, entry.rejected)

    def after(self, record: RoundRecord) -> None:
        """Note a round."""
        self._round.set(record.round)
        self._seconds.set(record.seconds)
        self._count(record.sampled, record.trained, record.rejected)

    def _count(self, sampled: int, counted: int, rejected: Mapping[str, int]) -> None:
        self._sampled.inc(sampled)
        self._counted.inc(counted)
        for reason, devices in rejected.items():
            self._rejected.labels(reason).inc(devices)
