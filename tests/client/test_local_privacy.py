"""DP-SGD on the device, against loops and histories that know nothing of Opacus."""

import math
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedprofile.client.batches import Cohort
from fedprofile.client.dropout import draw_masks
from fedprofile.client.examples import build_examples
from fedprofile.client.host import DeviceHost
from fedprofile.client.lifetime import LifetimeBudget, Terms
from fedprofile.client.local_privacy import EventPrivacy, PrivateTrainer, check_gradients
from fedprofile.client.local_training import draw_negatives, next_item_losses
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import MeanEncoder, build_encoder
from fedprofile.common.errors import BudgetError, ConfigError, MessageError
from fedprofile.common.histories import Histories
from fedprofile.common.ledger_entries import Reserve, read_ledger
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.messages import Binding, PopularityTask, TrainTask
from fedprofile.common.randomness import NoiseSource
from fedprofile.common.user_level_optimizer import UserLevelDPOptimizer

DAY = 86_400
SLOTS, Q, CLIP, SIGMA = 6, 0.5, 0.3, 1.1


def mechanism(**changes):
    values = {
        "clip_norm": CLIP,
        "noise_multiplier": SIGMA,
        "sampling_probability": Q,
        "population_size": SLOTS,
    }
    return Mechanism(**{**values, **changes})


def privacy(**changes):
    return EventPrivacy(mechanism=mechanism(**changes), period_seconds=10 * DAY)


def history(events):
    """One device of (day, item, session, weight) in order."""
    events = sorted(events)
    columns = list(zip(*events, strict=True)) or [(), (), (), ()]
    return Histories(
        offsets=np.array([0, len(events)], dtype=np.int64),
        items=np.array(columns[1], dtype=np.int32),
        times=np.array(columns[0], dtype=np.int64) * DAY,
        sessions=np.array(columns[2], dtype=np.int32),
        weights=np.array(columns[3], dtype=np.float32),
        types=np.zeros(len(events), dtype=np.int16),
    )


def steady(periods, first=0):
    """Two visits of two items in each of so many periods."""
    days = [10 * (first + p) + offset for p in range(periods) for offset in (1, 1, 4, 4)]
    return history([(day, i * 7 % 30, i // 2, 1.0) for i, day in enumerate(days)])


@pytest.fixture(scope="module")
def town(build_town):
    return build_town(n_devices=12, sessions=9)


def trainer(town, randomness=None, **named):
    return PrivateTrainer(
        town.encoder,
        town.population.table,
        town.config.model,
        privacy=named.pop("privacy", privacy()),
        randomness=randomness or NoiseSource.seeded(seed=5, label="t"),
        **named,
    )


def task(town, **changes):
    values = {
        "binding": Binding(
            run="r", round=3, release=9, items=town.population.table.content_hash, model="m"
        ),
        "devices": np.array([0]),
        "weights": town.initial(),
        "prior": np.zeros(30, dtype=np.float32),
        "vectors": np.zeros((30, 0), dtype=np.float32),
        "steps": 1,
        "learning_rate": 1.0,
        "negatives": 5,
        "dropout": 0.0,
        "new_targets_only": False,
        "clip_norm": math.inf,
        "noise_multiplier": 0.0,
        "seed": 21,
    }
    return TrainTask(**{**values, **changes})


def flat(arrays):
    return np.concatenate(
        [np.asarray(arrays[name], dtype=float).ravel() for name in sorted(arrays)]
    )


KEYS = np.array([77], dtype=np.uint64)


@pytest.fixture
def no_noise(monkeypatch):
    """Steps are exact, and all slots are in every batch."""
    monkeypatch.setattr(NoiseSource, "normal", lambda self, shape, stddev: np.zeros(shape))
    monkeypatch.setattr(
        NoiseSource,
        "poisson_sample",
        lambda self, *, population_size, probability: np.arange(population_size),
    )


@pytest.fixture(scope="module")
def sum_before_noise(town):
    """Sum of clipped gradients of one step: the update of a step of length 1, times the divisor."""

    @cache
    def of(slots):
        return trainer(town, privacy=privacy(population_size=slots))

    def summed(past, slots=SLOTS, **changes):
        return flat(of(slots).clipped_sum(past, KEYS, task(town, **changes)).arrays) * Q * slots

    return summed


# --- the sum of clipped gradients ----------------------------------------------------------------


def by_a_loop(town, past, arguments, slots):
    """The same in plain torch: in each step each period by itself, its gradient clipped, added up."""
    period = past.times // (10 * DAY)
    newest = {int(p) % slots: int(p) for p in period}  # later ones overwrite
    encoder = build_encoder(
        town.config.model, blocks=town.population.table.blocks, n_items=30, n_types=1, seed=0
    )
    encoder.load_state_dict({n: torch.from_numpy(w) for n, w in arguments.weights.items()})
    by_name = [p for _, p in sorted(encoder.named_parameters())]
    steps, seed = arguments.steps, arguments.seed
    drawn = draw_negatives(n_items=30, steps=steps, count=5, seed=seed)
    masks = draw_masks(encoder, rows=50, steps=steps, share=arguments.dropout, seed=seed)
    total, norms = 0.0, []
    for step in range(steps):
        clipped = 0.0
        for slot, chosen in newest.items():
            own = past.where(period == chosen)
            own = replace(own, weights=np.ones(own.n_events, dtype=np.float32))
            examples = build_examples(
                own,
                KEYS ^ np.uint64(slot),
                vectors=town.population.table.vectors,
                scales=town.config.model.scales,
                window=town.config.model.window,
                new_targets_only=False,
                seed=seed,
            )
            if not len(examples.target_items):
                continue
            cohort = Cohort(examples, torch.from_numpy(arguments.prior), drawn)
            batch, _, negatives = cohort.batch(np.array([0]))
            encoder.zero_grad()
            profiles = encoder(batch.inputs, masks[step])
            next_item_losses(profiles, batch, negatives[step], None).sum().backward()
            gradient = flat({n: p.grad.numpy() for n, p in encoder.named_parameters()})
            norms.append(np.linalg.norm(gradient))
            clipped = clipped + gradient * min(1.0, CLIP / norms[-1])
        total = total + clipped
        step_length = arguments.learning_rate / (Q * slots)
        moved = parameters_to_vector(by_name).detach().numpy() - step_length * clipped
        vector_to_parameters(torch.from_numpy(moved).float(), by_name)
    return total, norms


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize(("steps", "dropout"), [(1, 0.0), (1, 0.4), (3, 0.0), (3, 0.4)])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_the_sum_is_that_of_each_period_clipped_by_itself(
    town, sum_before_noise, slots, steps, dropout
):
    for device in range(town.population.size):
        past = town.population.histories.device(device)
        arguments = task(town, steps=steps, dropout=dropout)
        expected, norms = by_a_loop(town, past, arguments, slots)
        got = sum_before_noise(past, slots, steps=steps, dropout=dropout)
        tolerance = 2e-5 * CLIP * slots * steps
        np.testing.assert_allclose(got, expected + np.zeros_like(got), atol=tolerance)
        assert all(norm > CLIP for norm in norms)  # so the clip was put to the test


@pytest.mark.usefixtures("no_noise")
def test_no_slot_gets_more_than_the_clip_through(sum_before_noise):
    assert np.linalg.norm(sum_before_noise(steady(1))) == pytest.approx(CLIP, rel=1e-4)
    assert np.linalg.norm(sum_before_noise(steady(SLOTS + 3))) <= CLIP * SLOTS * 1.0001
    assert not sum_before_noise(steady(0)).any()


events = st.lists(
    st.tuples(st.integers(0, 90), st.integers(0, 29), st.integers(0, 3), st.floats(0.1, 50)),
    max_size=25,
)


def sessions_by_day(rows):
    """Sessions counted through: one event less moves the numbers of all later ones."""
    found, last = [], None
    for number, (day, item, visit, weight) in enumerate(sorted(rows)):
        session = found[-1][2] if found and last == (day, visit) else number
        last = (day, visit)
        found.append((day, item, session, weight))
    return history(found)


@pytest.mark.usefixtures("no_noise")
@settings(max_examples=25)
@given(rows=events, data=st.data())
def test_an_event_more_or_less_or_other_moves_the_sum_by_twice_the_clip_at_most(
    sum_before_noise, rows, data
):
    """And so do all events of a period at once: what changes is the content of one slot."""
    event = data.draw(
        st.tuples(st.integers(0, 90), st.integers(0, 29), st.integers(0, 3), st.just(9))
    )
    period = data.draw(st.integers(0, 9))
    other = data.draw(
        st.sampled_from(
            [
                [*rows, event],
                rows[1:],
                [row for row in rows if row[0] // 10 != period],
                [(d, 29 - i if d // 10 == period else i, v, w) for d, i, v, w in rows],
            ]
        )
    )
    dropout = data.draw(st.sampled_from([0.0, 0.5]))
    before = sum_before_noise(sessions_by_day(rows), dropout=dropout)
    after = sum_before_noise(sessions_by_day(other), dropout=dropout)
    assert np.linalg.norm(after - before) <= 2 * CLIP * 1.0001


def test_an_event_lies_in_one_slot_and_a_slot_in_one_period():
    past = steady(20)
    slots, keys = privacy().slots(past, KEYS)
    assert slots.n_devices == len(set(keys.tolist())) == SLOTS
    for slot in slots:
        [period] = set((slot.times // (10 * DAY)).tolist())
        assert period >= 20 - SLOTS  # the newest ones
    assert len(set(zip(slots.times.tolist(), slots.items.tolist(), strict=True))) == slots.n_events


def test_slots_of_many_devices_are_those_of_each_alone(town):
    histories, keys = town.population.histories, town.population.keys
    together, keys_together = privacy().slots(histories, keys)
    for device in range(histories.n_devices):
        alone, own = privacy().slots(histories.device(device), keys[device : device + 1])
        rows = range(device * SLOTS, (device + 1) * SLOTS)
        np.testing.assert_array_equal(own, keys_together[list(rows)])
        part = together.take(np.array(rows))
        for field in fields(Histories):
            np.testing.assert_array_equal(getattr(part, field.name), getattr(alone, field.name))


# --- noise and coins -----------------------------------------------------------------------------

ALARM = 1e-4
"""Chance of a false alarm of each test below; seeds are fixed, so it was taken once."""


def within(draws, stddev):
    low, high = chi2.ppf([ALARM / 2, 1 - ALARM / 2], len(draws)) * stddev**2
    return low <= np.square(draws).sum() <= high


@pytest.fixture(scope="module")
def broad_town(build_town):
    """One with more weights, each of which is a draw of noise."""
    return build_town(n_devices=2, model={"width": 64})


def noise_of(town, past, steps=1, rounds=1):
    """Updates of a device over some rounds, in units of what the noise of a step should be."""
    private = trainer(town)
    found = []
    for number in range(1, rounds + 1):
        binding = replace(task(town).binding, round=number)
        update = private.clipped_sum(past, KEYS, task(town, binding=binding, steps=steps))
        found.append(flat(update.arrays))
    return np.concatenate(found) * Q * SLOTS / (CLIP * SIGMA * math.sqrt(steps))


def test_the_noise_is_as_large_as_stated(broad_town):
    rounds = 1 + 100_000 // flat(broad_town.initial()).size
    draws = noise_of(broad_town, steady(0), rounds=rounds)
    assert len(draws) >= 100_000
    assert within(draws, 1.0)
    assert not within(draws * 2 / 3, 1.0)
    assert not within(draws * 1.5, 1.0)
    assert abs(draws.mean()) < 4 / math.sqrt(len(draws))


def test_an_empty_batch_is_a_step_of_noise(broad_town):
    draws = noise_of(broad_town, steady(0), steps=3, rounds=5)
    assert within(draws, 1.0)  # of three steps; were one left out, it would be √⅔ of that
    assert not within(draws * math.sqrt(2 / 3), 1.0)


def test_how_much_is_recorded_shows_neither_in_steps_nor_in_noise(town, monkeypatch):
    calls = []

    def watch(owner, name, told):
        real = getattr(owner, name)

        def watched(self, *arguments, **named):
            calls.append((name, told(self), arguments, named))
            return real(self, *arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    watch(NoiseSource, "poisson_sample", lambda source: source.kind)
    watch(NoiseSource, "normal", lambda source: source.kind)
    watch(UserLevelDPOptimizer, "step", lambda step: step.expected_batch_size)
    seen = []
    for periods in (0, 1, SLOTS, 4 * SLOTS):
        calls.clear()
        trainer(town).clipped_sum(steady(periods), KEYS, task(town, steps=4))
        seen.append(calls.copy())
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert [told for name, told, *_ in calls if name == "step"] == [Q * SLOTS] * 4


def test_slots_are_drawn_by_independent_coins_at_the_public_rate(town, monkeypatch):
    sizes = []
    sample = NoiseSource.poisson_sample

    def watched(self, **named):
        found = sample(self, **named)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(NoiseSource, "poisson_sample", watched)
    trainer(town).clipped_sum(steady(0), KEYS, task(town, steps=500))
    spread = math.sqrt(SLOTS * Q * (1 - Q))
    assert abs(np.mean(sizes) - SLOTS * Q) < 4 * spread / math.sqrt(500)
    assert 0.8 < np.std(sizes) / spread < 1.2


def test_seeds_repeat_and_secret_noise_does_not(town):
    past = steady(4)
    one, again = (flat(trainer(town).clipped_sum(past, KEYS, task(town)).arrays) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    secret = [
        flat(trainer(town, NoiseSource.csprng()).clipped_sum(past, KEYS, task(town)).arrays)
        for _ in range(2)
    ]
    assert np.linalg.norm(secret[0] - secret[1]) > 0
    other = flat(trainer(town).clipped_sum(past, KEYS + np.uint64(1), task(town)).arrays)
    assert np.linalg.norm(other - one) > 0  # devices don't share their noise


def test_updates_are_clipped_as_a_whole_on_top(town):
    histories, keys = town.population.histories, town.population.keys
    update = trainer(town).clipped_sum(histories, keys, task(town, clip_norm=0.01))
    assert update.devices == histories.n_devices
    alone = [
        trainer(town).clipped_sum(histories.device(d), keys[d : d + 1], task(town, clip_norm=0.01))
        for d in range(histories.n_devices)
    ]
    assert all(one.norm == pytest.approx(0.01, rel=1e-4) for one in alone)
    np.testing.assert_allclose(
        flat(update.arrays), sum(flat(one.arrays) for one in alone), atol=1e-7
    )


# --- encoders that gradients of single examples would be wrong for -------------------------------


def encoder(kind=MeanEncoder, **changes):
    config = ModelConfig(
        **{"width": 4, "heads": 1, "half_lives_days": (30.0,), "half_lives_events": (), **changes}
    )
    return kind(config, blocks={"text": (0, 6)}, n_items=9, n_types=2)


@pytest.mark.parametrize("name", ["mean", "gru", "transformer", "dense"])
def test_our_encoders_pass(name):
    config = ModelConfig(
        encoder=name, width=4, heads=1, half_lives_days=(30.0, 90.0), half_lives_events=()
    )
    check_gradients(build_encoder(config, blocks={"text": (0, 6)}, n_items=9, n_types=2, seed=0))


class Tied(MeanEncoder):
    def forward(self, inputs):
        return super().forward(inputs) + super().forward(inputs) @ (
            self.adapter.weight.T @ self.adapter.weight
        )


class Padded(MeanEncoder):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.kind = nn.Embedding(2, 4, padding_idx=0)


class Normed(MeanEncoder):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.batch_norm = nn.BatchNorm1d(4)


class Mixed(MeanEncoder):
    def _read(self, tokens, weights, masks):
        return super()._read(tokens - tokens.mean(dim=0, keepdim=True), weights, masks)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Tied, "tied weights, padding_idx"),
        (Padded, "tied weights, padding_idx"),
        (Normed, "BatchNorm"),
        (Mixed, "depends on the others in the batch"),
    ],
)
def test_encoders_that_fall_into_a_trap_are_refused(kind, what):
    with pytest.raises(ConfigError, match=what):
        check_gradients(encoder(kind))


def test_a_trainable_id_table_is_refused():
    with pytest.raises(ConfigError, match=r"set model\.item_ids = false"):
        check_gradients(encoder(item_ids=True))


def test_negatives_from_the_batch_are_refused():
    def in_batch(profiles, batch, negatives):
        scores = profiles[:, 0] @ batch.target_vectors[:, 0].T
        return torch.logsumexp(scores, dim=1) - scores.diagonal()

    with pytest.raises(ConfigError, match="negatives taken from the batch"):
        check_gradients(encoder(), in_batch)


@pytest.mark.parametrize("changes", [{"noise_multiplier": 0.0}, {"sampler": "fixed-size"}])
def test_event_privacy_needs_noise_and_coins(changes):
    with pytest.raises(ConfigError, match="noise and Poisson"):
        privacy(**changes)


# --- on a host -----------------------------------------------------------------------------------


class Budgets:
    def __init__(self, folder, limit):
        self.folder, self.limit = folder, limit

    def path(self, device):
        return self.folder / f"{device}.events.jsonl"

    def __call__(self, device):
        terms = replace(TERMS, target_epsilon=self.limit, unit="event", population_size=SLOTS)
        return LifetimeBudget.open(self.path(device), terms=terms)


TERMS = Terms(
    population="town",
    target_epsilon=60.0,
    delta=1e-5,
    randomness="seeded",
    code_version="test",
    config_digest="",
)


def host(town, budgets, **named):
    return DeviceHost(
        town.population.histories,
        keys=town.population.keys,
        first=0,
        table=town.population.table,
        model=town.config.model,
        trainer=town.trainer,
        private_trainer=trainer(town, budget_of=budgets),
        **named,
    )


def visit(town, number, **changes):
    binding = replace(task(town).binding, round=number, release=number)
    return task(town, binding=binding, devices=np.array([2, 5]), clip_norm=0.1, **changes)


def test_every_step_of_every_visit_is_charged_and_composed_over_restarts(town, tmp_path):
    budgets = Budgets(tmp_path, 60.0)
    for number in (1, 2, 3):
        host(town, budgets).train(visit(town, number, steps=2))  # a new process each time
    event = PoissonSampledDpEvent(Q, GaussianDpEvent(SIGMA))
    independent = PLDAccountant(NeighboringRelation.REPLACE_ONE).compose(event, 6)
    with budgets(2) as budget:
        assert budget.epsilon_spent() == pytest.approx(independent.get_epsilon(1e-5), rel=1e-6)
    entries = read_ledger(budgets.path(5))
    assert (entries[0].unit, entries[0].adjacency) == ("event", "replace-one")
    assert [e.round for e in entries if isinstance(e, Reserve)] == [1, 1, 2, 2, 3, 3]
    assert not budgets.path(3).exists()


def test_a_device_that_has_spent_its_events_declines(town, tmp_path):
    budgets = Budgets(tmp_path, 6.0)
    assert host(town, budgets).train(visit(town, 1)).devices == 2
    with pytest.raises(BudgetError, match="event-level ε") as refused:
        host(town, budgets).train(visit(town, 2, steps=4))
    assert refused.value.epsilon_reached > 6
    assert host(town, budgets).train(visit(town, 2)).devices == 2  # fewer steps still fit


@pytest.mark.parametrize("spent", ["user", "event"])
def test_who_declines_in_one_unit_pays_in_none(town, tmp_path, spent):
    def path(unit, device):
        return tmp_path / f"{device}.{unit}.jsonl"

    def budgets(unit, size):
        def of(device):
            limit = 0.1 if (unit, device) == (spent, 2) else 60.0
            terms = replace(TERMS, target_epsilon=limit, unit=unit, population_size=size)
            return LifetimeBudget.open(path(unit, device), terms=terms)

        return of

    thrifty = host(town, budgets("event", SLOTS), budget_of=budgets("user", 1))
    assert thrifty.train(visit(town, 1, noise_multiplier=1.0)).devices == 1
    for unit in ("user", "event"):
        kinds = [entry.kind for entry in read_ledger(path(unit, 5))]
        assert kinds == ["open", "reserve", "commit"]
        declined = path(unit, 2)
        assert not declined.exists() or len(read_ledger(declined)) == 1


def test_statistics_would_go_out_in_clear(town, tmp_path):
    asked = PopularityTask(
        binding=task(town).binding,
        devices=np.array([1]),
        clip_norm=1.0,
        noise_multiplier=1.0,
        half_lives_days=(),
        now=0,
    )
    with pytest.raises(MessageError, match="without event-level noise"):
        host(town, Budgets(tmp_path, 9.0)).contribute(asked)
