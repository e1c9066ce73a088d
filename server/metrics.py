"""Figures for Prometheus, on this host's loopback alone: what the ledger holds, and no more.

A server that was started again goes on with the ledger's figures: ε that falls to 0 would be taken for
what was spent.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from ..common.ledger_entries import Commit, Entry, Reserve


class Metrics:
    """Metrics of a running federation.

    Args:
        port: on 127.0.0.1; 0: none are served.
    """

    def __init__(self, port: int) -> None:
        self._followed = 0  # entries
        self._rounds: dict[int, int | None] = {}  # of releases that aren't committed yet
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

    def follow(self, entries: Sequence[Entry], *, epsilon: float) -> None:
        """Note what the ledger tells since this was asked last: of statistics and rounds alike.

        Args:
            entries: all of them.
            epsilon: what they cost.
        """
        self._epsilon.set(epsilon)
        for entry in entries[self._followed :]:
            if isinstance(entry, Reserve):
                self._rounds[entry.sequence] = entry.round
            elif isinstance(entry, Commit):
                if (number := self._rounds.pop(entry.release)) is not None:
                    self._round.set(number)
                self._count(entry)
        self._followed = len(entries)

    def took(self, seconds: float) -> None:
        """Note how long a round took."""
        self._seconds.set(seconds)

    def _count(self, commit: Commit) -> None:
        self._sampled.inc(commit.cohort_size)
        self._counted.inc(commit.replies_counted)
        for reason, devices in commit.rejected.items():
            self._rejected.labels(reason).inc(devices)
