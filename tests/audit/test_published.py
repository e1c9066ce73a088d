"""Published ε, to the digits given, from ledgers that record those runs.

The papers before 2020 turn Rényi DP of order α into ε by ε(α) + log(1/δ)/(α − 1) (Mironov 2017,
proposition 3; Abadi et al. 2016, theorem 2), the papers at whole α, TensorFlow Privacy at fractions too.
Today's conversions and PLD are tighter, so the program's own figures must lie below.
"""

import math

import pytest
from dp_accounting.rdp import RdpAccountant

from fedprofile.common.accounting import epsilon, epsilon_rdp, epsilon_without_amplification
from fedprofile.common.ledger_entries import Reserve, events_of
from fedprofile.common.mechanism import Mechanism

WHOLE = range(2, 65)
FRACTIONS = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))


def by_moments(events, delta, orders):
    accountant = RdpAccountant(orders)
    for event, count in events.items():
        accountant.compose(event, count)
    costs = zip(accountant._orders, accountant._rdp, strict=True)
    return min(cost + math.log(1 / delta) / (order - 1) for order, cost in costs)


@pytest.mark.parametrize(
    ("source", "population", "cohort", "noise", "rounds", "delta", "published", "digits"),
    [
        # §5.1 and figure 2: q = 0.01, σ = 4, δ = 1e-5, E = 100 epochs, which are E/q rounds
        ("Abadi et al. 2016", 60_000, 600, 4.0, 10_000, 1e-5, 1.26, 2),
        # Table 1: K = 763,430 users, 5,000 expected a round, z = 1.0, 5,000 rounds, δ = 1e-9
        ("McMahan et al. 2018", 763_430, 5_000, 1.0, 5_000, 1e-9, 4.634, 3),
        # tutorials/README.md, "Select Parameters": MNIST, N = 60,000, batches of 256, δ = 1e-5, for
        # 15, 60 and 45 epochs
        ("TensorFlow Privacy", 60_000, 256, 1.3, 3_516, 1e-5, 1.19, 2),
        ("TensorFlow Privacy", 60_000, 256, 1.1, 14_063, 1e-5, 3.01, 2),
        ("TensorFlow Privacy", 60_000, 256, 0.7, 10_547, 1e-5, 7.10, 2),
    ],
)
def test_moments_accountant(
    forge, source, population, cohort, noise, rounds, delta, published, digits
):
    mechanism = Mechanism(
        clip_norm=1.0,
        noise_multiplier=noise,
        sampling_probability=cohort / population,
        population_size=population,
    )
    writer = forge.Writer().open(population_size=population, delta=delta)
    writer.reserve(mechanism)
    chain, _ = writer.chain()
    [release] = [entry for entry in chain.entries if isinstance(entry, Reserve)]
    events = events_of([release] * rounds)
    orders = FRACTIONS if population == 60_000 and cohort == 256 else WHOLE
    assert round(by_moments(events, delta, orders), digits) == published, source
    assert epsilon(events, delta=delta, coarse=True) < epsilon_rdp(events, delta=delta) < published


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
