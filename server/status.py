"""Where a federation stands, read off its ledger: the ledger is what is true after any crash."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from ..common import accounting
from ..common.anchor import is_behind
from ..common.errors import LedgerError
from ..common.ledger_entries import Chain, Commit, Reserve, Stop, events_of, read_chain
from ..common.server_bundle import certificate_sha256
from ..common.signing import SigningKey
from .enrolment import Enrolment
from .folder import ServerFolder
from .link import Link
from .releases import Releases


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a federation stands.

    Attributes:
        federation: its name.
        signing_key: hex, the public key that devices know the server by.
        ca_sha256: hex, fingerprint of the authority that they trust for it.
        running: whether its SuperLink answers.
        rounds: planned.
        round: the last that was committed; 0 before.
        cohort: devices sampled in it; None before.
        counted: devices in its sum.
        rejected: reason → devices, over all rounds.
        lost: releases that were reserved and never committed, but for one under way; they are charged.
        epsilon: spent; None without privacy.
        target: budget; None without privacy.
        delta: δ of both.
        enrolled: devices that may take part.
        revoked: devices shut out.
        population: N.
        online: devices online; None where the server doesn't run.
        release: SHA-256 of the latest model; None before the first.
        stopped: why the federation ended; None while it hasn't.
    """

    federation: str
    signing_key: str
    ca_sha256: str
    running: bool
    rounds: int
    round: int
    cohort: int | None
    counted: int | None
    rejected: dict[str, int]
    lost: int
    epsilon: float | None
    target: float | None
    delta: float | None
    enrolled: int
    revoked: int
    population: int
    online: int | None
    release: str | None
    stopped: str | None

    @property
    def left(self) -> float | None:
        """ε that is left; None without privacy."""
        if self.target is None or self.epsilon is None:
            return None
        return max(0.0, self.target - self.epsilon)

    def describe(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "left": self.left}


def read_standing(folder: ServerFolder) -> Standing:
    """Where the federation in ``folder`` stands, running or not.

    Raises:
        LedgerError: the ledger doesn't hold together, or its anchor tells of more.
        ServerError: who is enrolled can't be read.
        ConfigError: the certificate of its authority can't be read.
    """
    config = folder.config
    enrolment = Enrolment(folder.devices, population_size=config.federation.population_size)
    devices = enrolment.devices()
    active = [device for device in devices if device.revoked is None]
    online = _online(folder)
    key = SigningKey.load(folder.signing_key)
    latest = Releases(folder, key).latest()
    chain = _anchored(folder) if folder.begun else None
    entries = chain.entries if chain else []
    rounds = {entry.sequence: entry.round or 0 for entry in entries if isinstance(entry, Reserve)}
    commits = [entry for entry in entries if isinstance(entry, Commit)]
    rejected = Counter[str]()
    for commit in commits:
        rejected.update(commit.rejected)
    private = config.privacy.enabled
    opening = chain.opening if chain else None
    spent = accounting.epsilon(events_of(entries), delta=opening.delta) if opening else 0.0
    last = entries[-1] if entries else None
    return Standing(
        federation=config.federation.name,
        signing_key=key.public_key,
        ca_sha256=certificate_sha256(folder.ca),
        running=online is not None,
        rounds=config.training.rounds,
        round=rounds[commits[-1].release] if commits else 0,
        cohort=commits[-1].cohort_size if commits else None,
        counted=commits[-1].replies_counted if commits else None,
        rejected=dict(rejected),
        # The newest may be under way.
        lost=len(rounds) - len(commits) - (online is not None and isinstance(last, Reserve)),
        epsilon=spent if private else None,
        target=(opening.target_epsilon if opening else config.privacy.epsilon) if private else None,
        delta=opening.delta if opening else config.delta,
        enrolled=len(active),
        revoked=len(devices) - len(active),
        population=config.federation.population_size,
        online=online,
        release=latest.model if latest else None,
        stopped=last.reason if isinstance(last, Stop) else None,
    )


def _anchored(folder: ServerFolder) -> Chain:
    """The ledger as far as it is written; one that was cut short would tell of too little.

    Raises:
        LedgerError: it doesn't hold together, or the anchor tells of another or a longer one.
    """
    while True:
        chain = read_chain(folder.ledger)
        try:
            is_behind(folder.anchor, folder.ledger, chain)
        except LedgerError:
            # The server may have gone on while this was reading.
            if len(read_chain(folder.ledger).entries) == len(chain.entries):
                raise
        else:
            return chain


def _online(folder: ServerFolder) -> int | None:
    try:
        with Link(folder.socket) as link:
            return sum(node.online for node in link.nodes())
    except httpx.HTTPError:
        return None
