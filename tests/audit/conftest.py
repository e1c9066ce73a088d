"""Ledgers as honest servers write them, made in a moment; and ways to tamper with them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedprofile.audit.accountants import (
    PLD,
    PRV,
    RDP,
    UNAMPLIFIED,
    Answer,
)
from fedprofile.common.anchor import Anchor
from fedprofile.common.ledger_entries import Chain, canonical, hash_of, seal
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.signing import SigningKey

KEY = SigningKey.generate()
TIME = "2026-01-01T00:00:00+00:00"


def mechanism(**changes):
    values = {
        "clip_norm": 0.5,
        "noise_multiplier": 2.0,
        "sampling_probability": 0.05,
        "population_size": 1_000,
    }
    return Mechanism(**{**values, **changes})


@dataclass
class Writer:
    """Writes entries without a disk in between; ``values`` keeps what was written, to change it."""

    values: list = field(default_factory=list)
    key: SigningKey = KEY

    def open(self, **changes):
        values = {
            "kind": "open",
            "version": 2,
            "unit": "user",
            "adjacency": "add-or-remove-one",
            "population": "shop",
            "population_size": 1_000,
            "delta": 1e-5,
            "target_epsilon": 8.0,
            "randomness": "csprng",
            "code_version": "0.1.0",
            "config_digest": "c0ffee",
            "public_key": self.key.public_key,
            "nonce": "0" * 32,
            "earlier": [],
        }
        self.values.append({**values, **changes})
        return self

    def reserve(self, mechanism=None, **changes):
        mechanism = mechanism or globals()["mechanism"]()
        values = {
            "kind": "reserve",
            "run": "r",
            "task": "training",
            "round": 1,
            "mechanism": mechanism.describe(),
            "divisor": mechanism.expected_cohort,
            "weighting": "equal",
            "model_before": None,
            "code_version": "0.1.0",
        }
        self.values.append({**values, **changes})
        return len(self.values) - 1

    def commit(self, release, **changes):
        values = {
            "kind": "commit",
            "release": release,
            "cohort_size": 50,
            "replies_counted": 50,
            "rejected": {},
            "model_after": None,
        }
        self.values.append({**values, **changes})
        return self

    def stop(self, **changes):
        self.values.append({"kind": "stop", "reason": "completed", "epsilon": None, **changes})
        return self

    def chain(self, key=None):
        """The chain and its lines, signed by ``key`` or the writer's own."""
        chain, lines = Chain(), []
        for number, values in enumerate(self.values):
            linked = {"sequence": number, "previous": chain.head, "time": TIME, **values}
            entry, line = seal(linked, key or self.key)
            chain.add(entry, line)
            lines.append(line)
        return chain, lines

    def write(self, path: Path, anchor: Path | None = None, key=None):
        chain, lines = self.chain(key)
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        if anchor is not None:
            Anchor.publish(
                anchor,
                ledger=chain.identity,
                sequence=len(lines) - 1,
                head=chain.head,
                signing_key=self.key,
            )
        return path


def model(number):
    return hash_of(f"model {number}".encode())


def honest(*, rounds=30, seed=0, sizes=None, population_size=1_000, q=0.05, **opening):
    """A run as it should be: popularity, then ``rounds`` with Poisson cohorts or ``sizes``."""
    rng = np.random.default_rng(seed)
    writer = Writer().open(population_size=population_size, **opening)
    everyone = mechanism(
        sampling_probability=1.0, noise_multiplier=8.0, population_size=population_size
    )
    release = writer.reserve(everyone, task="statistics/popularity", round=None)
    writer.commit(release, cohort_size=population_size, replies_counted=population_size)
    training = mechanism(sampling_probability=q, population_size=population_size)
    for number in range(1, rounds + 1):
        size = int(rng.binomial(population_size, q)) if sizes is None else sizes[number - 1]
        before, after = model(number - 1), model(number)
        release = writer.reserve(training, round=number, model_before=before)
        rejected = {"late": 1} if size else {}
        writer.commit(
            release,
            cohort_size=size,
            replies_counted=max(0, size - 1),
            rejected=rejected,
            model_after=after,
        )
    return writer


def events(*, steps=40, **opening):
    """What a device keeps of the steps that hide its single events."""
    writer = Writer().open(unit="event", adjacency="replace-one", population_size=20, **opening)
    step = mechanism(population_size=20, sampling_probability=0.2)
    for number in range(1, steps + 1):
        release = writer.reserve(step, round=number, model_before=model(number - 1))
        writer.commit(release, cohort_size=0, replies_counted=0, model_after=model(number))
    return writer


def relink(path: Path, change, *, sign_with=None):
    """Change the entries of a ledger and rebuild its chain, as somebody without the key could."""
    contents = [json.loads(line) for line in path.read_bytes().splitlines()]
    previous, lines = "0" * 64, []
    for number, content in enumerate(change(contents)):
        content = {**content, "sequence": number, "previous": previous}
        if sign_with is not None:
            content.pop("signature")
            content["signature"] = sign_with.sign(canonical(content))
        lines.append(canonical(content))
        previous = hash_of(lines[-1])
    path.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture(scope="session")
def forge():
    """All of the above: tests share by fixtures."""
    return SimpleNamespace(
        key=KEY, Writer=Writer, honest=honest, events=events, mechanism=mechanism, relink=relink
    )


@pytest.fixture
def quick_accountants(accountants_here, monkeypatch):
    """Figures out of the air: for tests that are about other checks, and run hundreds of them."""

    class Quick(accountants_here):
        def answers(self, releases, delta, adjacency):
            return {
                PLD: Answer(1.0),
                PRV: Answer(1.01),
                RDP: Answer(2.0),
                UNAMPLIFIED: Answer(50.0),
            }

    monkeypatch.setattr("fedprofile.audit.verify.Accountants", Quick)
