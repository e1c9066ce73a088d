"""Published ε, to the digits given, from ledgers that record those runs.

The papers turn Rényi DP into ε as it was done before 2020. Today's conversions and PLD are tighter, so the
program's own figures must lie below.
"""

import math

import pytest

from benchmarks.published import PUBLISHED, by_moments
from fedprofile.common.accounting import epsilon, epsilon_rdp, epsilon_without_amplification
from fedprofile.common.ledger_entries import Reserve, events_of
from fedprofile.common.mechanism import Mechanism


@pytest.mark.parametrize("run", PUBLISHED, ids=lambda run: f"{run.source} {run.epsilon}")
def test_moments_accountant(forge, run):
    writer = forge.Writer().open(population_size=run.population, delta=run.delta)
    writer.reserve(run.mechanism)
    chain, _ = writer.chain()
    [release] = [entry for entry in chain.entries if isinstance(entry, Reserve)]
    events, delta = events_of([release] * run.rounds), run.delta
    found = by_moments(events, delta=delta, orders=run.orders)
    assert round(found, run.digits) == run.epsilon
    ours = epsilon(events, delta=delta, coarse=True)
    assert ours < epsilon_rdp(events, delta=delta) < run.epsilon


def test_zero_concentrated_dp_of_a_deployed_keyboard():
    # Gboard's first Spanish next-word model: ρ = 0.81 zCDP, (ε = 8.9, δ = 1e-10)-DP (McMahan &
    # Thakurta 2022, Federated Learning with Formal Differential Privacy Guarantees, Google AI blog;
    # ε again in Xu & Zhang 2024, Advances in Private Training for Production On-Device Language
    # Models). One Gaussian release of noise 1/√2ρ has that ρ; they converted by Rényi DP.
    mechanism = Mechanism(
        clip_norm=1.0,
        noise_multiplier=1 / math.sqrt(2 * 0.81),
        sampling_probability=1.0,
        population_size=10,
    )
    assert round(epsilon_rdp({mechanism.event(): 1}, delta=1e-10), 1) == 8.9
    exact = epsilon_without_amplification({mechanism: 1}, delta=1e-10)
    assert epsilon({mechanism.event(): 1}, delta=1e-10) == pytest.approx(exact, abs=1e-4)
    assert exact < 8.9
