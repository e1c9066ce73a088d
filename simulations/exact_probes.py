"""Probes that are exact up to float32 rounding: what devices count for, and what the ledger holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..audit.statistics import Measurement
from ..common.errors import ReplyRejected
from .probe_observed import Observed, Release, flat
from .probe_report import Probe
from .watched_grid import Exchange, Meddling, absent, twice, unclipped, untouched

Parts = tuple[Exchange, list[Exchange]]
"""A host's exchange, and one with each of its devices alone."""

MEDDLING: dict[int, Meddling] = {0: unclipped, 1: untouched, 2: twice, 3: absent, 4: unclipped}
"""Round, from 1, or 0 for statistics → what becomes of replies, in the federation these probes look at."""
_PLAIN, _DOUBLED, _THINNED, _INFLATED = range(4)
_OVER = 1e-5  # relative to C: clipping runs in float32
_NEAR = 1e-3  # relative to C or q·N: sums of float32 contributions, in another order


def step_probes(idle: Observed, noisy: Observed) -> Iterator[Probe]:
    """What the server does with a release."""
    yield Probe(
        name="noise/step",
        claim="The weights move along what is released and nothing else (weights that don't)",
        result=_exactly(0, idle.missteps + noisy.missteps),
    )


def clip_probes(exact: Observed, alone: Sequence[Parts]) -> Iterator[Probe]:
    """The bound on one device, kept by hosts and enforced by the server."""
    norms = _norms(alone, exact.rounds[_PLAIN])
    yield Probe(
        name="clip/devices",
        claim="Of devices that learn far too fast, the largest update over all layers is C (in C)",
        result=Measurement(measured=max(norms, default=math.nan), low=1 - _NEAR, high=1 + _OVER),
    )
    yield Probe(
        name="clip/server",
        claim="A reply above devices · C doesn't get into the sum (what did, in C)",
        result=_nothing(exact.rounds[_INFLATED]),
    )


def weights_probes(exact: Observed, alone: Sequence[Parts]) -> Iterator[Probe]:
    """What one device counts for, and what the sum is divided by."""
    plain = exact.rounds[_PLAIN]
    learnt = [norm for norm in _norms(alone, plain) if norm > 0]
    yield Probe(
        name="weights/equal",
        claim="Of the same devices, with histories short and long, the smallest update is C (in C)",
        result=Measurement(measured=min(learnt, default=math.nan), low=1 - _NEAR, high=1 + _OVER),
    )
    yield Probe(
        name="weights/alone",
        claim="A host sends the sum of what its devices send alone (largest difference, in C)",
        result=Measurement(measured=_joint_difference(alone, plain), low=0.0, high=_NEAR),
    )
    yield Probe(
        name="weights/sum",
        claim="Without noise, the sum of all replies is released, each counted once (difference, in C)",
        result=_nothing(plain),
    )
    doubled = exact.rounds[_DOUBLED]
    yield Probe(
        name="weights/twice",
        claim="Neither a reply nor a device counts twice (difference, in C)",
        result=replace(
            _nothing(doubled), measured=_nothing(doubled).measured + _named_twice(exact, doubled)
        ),
    )
    thinned = exact.rounds[_THINNED]
    contributed, _ = thinned.contributed()
    total, sum_ = flat(thinned.total), flat(contributed)
    along = float(total @ sum_)
    yield Probe(
        name="divisor/dropouts",
        claim="The sum is divided by q·N though hosts fail and don't answer (in q·N)",
        result=Measurement(
            measured=float(sum_ @ sum_) / along if along else math.nan,
            low=1 - _NEAR,
            high=1 + _NEAR,
        ),
    )


def statistics_probes(exact: Observed, noisy: Observed) -> Iterator[Probe]:
    """Clip and sum of the one-shot statistics, and what is made of them; nothing where there are none."""
    for name, release in exact.statistics.items():
        alone = ask_alone(exact, release)
        yield Probe(
            name=f"{name}/clip",
            claim=f"No device contributes more than C to {name} (largest, in C)",
            result=Measurement(measured=max(_norms(alone, release)), low=0.0, high=1 + _OVER),
        )
        difference = _nothing(release).measured + _joint_difference(alone, release)
        yield Probe(
            name=f"{name}/sum",
            claim="Without noise, what is released is the sum of what devices send alone, without replies "
            "above devices · C (difference, in C)",
            result=Measurement(measured=difference, low=0.0, high=_NEAR),
        )
    if "cooccurrence" in exact.statistics:
        yield Probe(
            name="cooccurrence/vectors",
            claim="Item vectors and successors follow from what is released of co-occurrence (difference "
            "of cosines or chances)",
            result=Measurement(measured=max(exact.strayed, noisy.strayed), low=0.0, high=_NEAR),
        )


def ledger_probes(observed: list[Observed], charged: int) -> Iterator[Probe]:
    """What the ledger on disk held, and when."""
    yield Probe(
        name="ledger/reserved",
        claim="The ledger on disk holds a release before devices are asked (releases it doesn't)",
        result=_exactly(0, sum(run.unreserved for run in observed)),
    )
    yield Probe(
        name="ledger/counts",
        claim="It tells of each release the cohort and replies on the wire (releases it doesn't)",
        result=_exactly(0, sum(run.miscounted for run in observed)),
    )
    yield Probe(
        name="ledger/crash",
        claim="Two rounds, the second repeated after a crash, are charged as three (rounds charged)",
        result=_exactly(3, charged),
    )


def _exactly(expected: float, measured: float) -> Measurement:
    return Measurement(measured=measured, low=expected, high=expected)


def _nothing(release: Release) -> Measurement:
    """Norm of what was released beside the contributions, in C; 0 without noise."""
    norm = float(np.linalg.norm(flat(release.residual()))) / release.declared.clip_norm
    return Measurement(measured=norm, low=0.0, high=_NEAR)


def ask_alone(run: Observed, release: Release) -> list[Parts]:
    """Each exchange of a release, and its devices asked one by one."""
    return [
        (
            exchange,
            [
                run.grid.ask(exchange.node, replace(exchange.task, devices=np.array([device])))
                for device in exchange.task.devices
            ],
        )
        for exchange in release.exchanges
    ]


def _norms(alone: Sequence[Parts], release: Release) -> list[float]:
    """Norm of what each device sends alone, in the declared C; ∞ where it is refused."""
    norms = []
    for _, parts in alone:
        for part in parts:
            try:
                norms.append(part.update().norm / release.declared.clip_norm)
            except ReplyRejected:
                norms.append(math.inf)
    return norms


def _joint_difference(alone: Sequence[Parts], release: Release) -> float:
    """Largest norm of a host's reply less what its devices send alone, in C; NaN if one is refused."""
    largest = 0.0
    for exchange, parts in alone:
        try:
            difference = {n: a.astype(np.float64) for n, a in exchange.update().arrays.items()}
            for part in parts:
                for name, array in part.update().arrays.items():
                    difference[name] -= array
        except ReplyRejected:
            return math.nan
        largest = max(largest, float(np.linalg.norm(flat(difference))))
    return largest / release.declared.clip_norm


def _named_twice(run: Observed, release: Release) -> float:
    """Largest norm of a reply to a task that names a device twice, in C; 0 where all are refused."""
    largest = 0.0
    for exchange in release.exchanges:
        again = replace(exchange.task, devices=np.repeat(exchange.task.devices[:1], 2))
        try:
            largest = max(largest, run.grid.ask(exchange.node, again).update().norm)
        except ReplyRejected:
            continue
    return largest / release.declared.clip_norm
