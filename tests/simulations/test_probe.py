"""Faulty builds, and the probes that catch them; and no alarm without a fault."""

import datetime as dt
import json
import logging
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from click.testing import CliRunner
from scipy.stats import binom

from fedprofile.client import host, local_training
from fedprofile.client.host import DeviceHost
from fedprofile.common import randomness, updates
from fedprofile.common.config import RunConfig
from fedprofile.common.errors import ConfigError, RunFolderError
from fedprofile.common.ledger import Ledger
from fedprofile.common.ledger_entries import Reserve, read_ledger
from fedprofile.common.messages import read_update
from fedprofile.common.randomness import NoiseSource
from fedprofile.common.server_config import ServerConfig
from fedprofile.common.signing import SigningKey
from fedprofile.common.user_level_optimizer import UserLevelDPOptimizer
from fedprofile.server import app as server_app
from fedprofile.server import strategy, validation
from fedprofile.server.budget import plan_budget
from fedprofile.server.split import Sizes
from fedprofile.server.strategy import PrivateAveraging
from fedprofile.simulations import probe, probe_cli, probe_runs
from fedprofile.simulations.chance_probes import (
    FALSE_ALARM_RATE,
    correlation_probes,
    noise_probes,
    sampler_probes,
    statistics_noise_probes,
)
from fedprofile.simulations.exact_probes import MEDDLING, step_probes
from fedprofile.simulations.probe import Seen, measure, run_probes
from fedprofile.simulations.probe_runs import Probed

ROUNDS = 10
SMALL = {
    "seed": 1,
    "items": {"dimension": 8},
    "model": {"encoder": "mean", "width": 4, "heads": 1, "window": 6, "half_lives_days": [30]},
    "training": {"negatives": 5},
    "privacy": {"noise_multiplier": 1.5},  # calibration takes seconds
    "engine": {"threads": 1},
}


def config_of(**sections):
    merged = {
        section: {**SMALL.get(section, {}), **values} if isinstance(values, dict) else values
        for section, values in sections.items()
    }
    return RunConfig.model_validate({**SMALL, **merged})


@pytest.fixture(autouse=True)
def _quiet():
    """Devices refuse on purpose here."""
    logging.getLogger("fedprofile").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("fedprofile").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def probed():
    return Probed.of(config_of())


@pytest.fixture
def once(probed, monkeypatch):
    """Populations, plan and encoder made once for all."""
    monkeypatch.setattr(Probed, "of", lambda config: replace(probed, config=config))


def fired(report):
    return {found.name for found in report.probes if not found.holds}


# --- faults: each changes the code that a simulation runs -----------------------------------------


def scaled_noise(factor):
    def inject(patch):
        normal = NoiseSource.normal
        patch.setattr(
            NoiseSource,
            "normal",
            lambda self, shape, *, stddev: factor * normal(self, shape, stddev=stddev),
        )

    return inject


def uniform_noise(patch):
    def uniform(self, shape, *, stddev):
        numbers = self.uniforms(int(np.prod(shape))).reshape(shape)
        return stddev * np.sqrt(12) * (numbers - 0.5)

    patch.setattr(NoiseSource, "normal", uniform)


def layer_without_noise(patch):
    normal = NoiseSource.normal

    def but_one(self, shape, *, stddev):
        return normal(self, shape, stddev=0.0 if shape == (4,) else stddev)

    patch.setattr(NoiseSource, "normal", but_one)


def noise_only_without_updates(patch):
    take = UserLevelDPOptimizer._take

    def and_forget(self, summed):
        take(self, summed)
        if any(float(total.abs().sum()) for total in summed.values()):
            self._mechanism = replace(self._mechanism, noise_multiplier=0.0)

    patch.setattr(UserLevelDPOptimizer, "_take", and_forget)


def step_beside_the_noise(patch):
    step = PrivateAveraging._private_step

    def and_a_bit(self, server_round, tally):
        norm = step(self, server_round, tally)
        first = next(iter(self._parameters.values()))
        first.data += 1e-3
        return norm

    patch.setattr(PrivateAveraging, "_private_step", and_a_bit)


def same_seed_every_round(patch):
    child = NoiseSource.child
    patch.setattr(NoiseSource, "child", lambda self, label: child(self, label.partition("/")[0]))


def same_key_every_run(patch):
    patch.setattr(randomness.os, "urandom", lambda n: bytes(n))


def same_noise_in_every_layer(patch):
    normal = NoiseSource.normal

    def afresh(self, shape, *, stddev):
        copy = NoiseSource(kind=self.kind, key=self._key)
        return normal(copy, shape, stddev=stddev)

    patch.setattr(NoiseSource, "normal", afresh)


def layer_not_clipped(patch):
    clip_and_sum = local_training.clip_and_sum

    def but_one(stacked, *, clip_norm):
        sums, norms = clip_and_sum(stacked, clip_norm=clip_norm)
        sums["out.bias"] = stacked["out.bias"].sum(dim=0)
        return sums, norms

    patch.setattr(local_training, "clip_and_sum", but_one)


def layer_not_clipped_nor_checked(patch):
    layer_not_clipped(patch)
    patch.setattr(updates, "_SLACK", np.inf)


def each_layer_clipped_by_itself(patch):
    clip_and_sum = local_training.clip_and_sum

    def apart(stacked, *, clip_norm):
        sums = {}
        for name, layer in stacked.items():
            single, norms = clip_and_sum({name: layer}, clip_norm=clip_norm)
            sums.update(single)
        return sums, norms

    patch.setattr(local_training, "clip_and_sum", apart)
    patch.setattr(updates, "_SLACK", np.inf)


def server_takes_any_norm(patch):
    read_update = validation.read_update

    def credulous(reply, *, binding, shapes):
        with pytest.MonkeyPatch.context() as unchecked:
            unchecked.setattr(updates, "_SLACK", np.inf)
            return read_update(reply, binding=binding, shapes=shapes)

    patch.setattr(validation, "read_update", credulous)


def client_weighted_on_its_host(patch):
    train = DeviceHost.train

    def heavier(self, task):
        update = train(self, task)
        if len(task.devices) > 1:
            # Four more times the first device, within what the host's devices may send together.
            one = train(self, replace(task, devices=task.devices[:1]))
            share = min(1.0, (task.clip_norm * update.devices) / (update.norm + 4 * one.norm))
            for name, array in update.arrays.items():
                array[...] = share * (array + 4 * one.arrays[name])
        return update

    patch.setattr(DeviceHost, "train", heavier)


def reply_weighted_by(server):
    def inject(patch):
        add_up = server.add_up

        def heavier(replies, *, binding, shapes, **settings):
            replies = list(replies)
            tally = add_up(replies, binding=binding, shapes=shapes, **settings)
            if replies and not replies[-1].has_error():
                update = read_update(replies[-1], binding=binding, shapes=shapes)
                for name, array in update.arrays.items():
                    tally.total[name] += 4 * array
            return tally

        patch.setattr(server, "add_up", heavier)

    return inject


def weighted_by_history(patch):
    clip_and_sum = local_training.clip_and_sum

    def by_norm(stacked, *, clip_norm):
        # Whoever learnt less counts less.
        parts = [layer.flatten(1).norm(dim=1) for layer in stacked.values()]
        norms = sum(part**2 for part in parts) ** 0.5
        return clip_and_sum(
            {
                name: layer * (clip_norm / norms.max()).view(-1, *[1] * (layer.dim() - 1)) * 0.9
                for name, layer in stacked.items()
            },
            clip_norm=clip_norm,
        )

    patch.setattr(local_training, "clip_and_sum", by_norm)


def replies_count_as_often_as_they_come(patch):
    add_up = strategy.add_up

    def all_of_them(replies, **settings):
        replies = list(replies)
        tally = add_up(replies, **settings)
        copies = len(replies) / max(1, len({id(reply) for reply in replies}))
        return replace(tally, total={name: copies * t for name, t in tally.total.items()})

    patch.setattr(strategy, "add_up", all_of_them)


def devices_may_be_named_twice(patch):
    patch.setattr(host, "np", SimpleNamespace(**{**vars(np), "unique": lambda devices: devices}))


def divided_by_replies(patch):
    step = PrivateAveraging._private_step

    def by_replies(self, server_round, tally):
        declared = self._mechanism
        rate = max(1, tally.devices) / declared.population_size
        self._mechanism = replace(declared, sampling_probability=rate)
        try:
            return step(self, server_round, tally)
        finally:
            self._mechanism = declared

    patch.setattr(PrivateAveraging, "_private_step", by_replies)


def fixed_size(patch):
    def exactly(mechanism, *, coins):
        order = np.argsort(coins.uniforms(mechanism.population_size))
        return np.sort(order[: round(mechanism.expected_cohort)])

    patch.setattr(strategy, "sample_cohort", exactly)


def wrong_rate(patch):
    sample = strategy.sample_cohort

    def more(mechanism, *, coins):
        rate = min(1.0, 1.2 * mechanism.sampling_probability)
        return sample(replace(mechanism, sampling_probability=rate), coins=coins)

    patch.setattr(strategy, "sample_cohort", more)


def favourites(patch):
    def half_and_half(mechanism, *, coins):
        n, q = mechanism.population_size, mechanism.sampling_probability
        return np.flatnonzero(coins.uniforms(n) < np.repeat([1.6 * q, 0.4 * q], n // 2))

    patch.setattr(strategy, "sample_cohort", half_and_half)


def statistic_with_noise(name, factor):
    def inject(patch):
        release_sum = server_app.release_sum

        def scaled(summed, **settings):
            noisy = release_sum(summed, **settings)
            if name in summed:
                noisy[name] = summed[name] + factor * (noisy[name] - summed[name])
            return noisy

        patch.setattr(server_app, "release_sum", scaled)

    return inject


def statistics_divided(patch):
    release_sum = server_app.release_sum

    def mean(summed, *, mechanism, noise):
        shares = {name: total / mechanism.population_size for name, total in summed.items()}
        return release_sum(shares, mechanism=mechanism, noise=noise)

    patch.setattr(server_app, "release_sum", mean)


def same_noise_in_every_statistic(patch):
    child = NoiseSource.child

    def of_all(self, label):
        return child(self, "statistics" if label.startswith("statistics/") else label)

    patch.setattr(NoiseSource, "child", of_all)


def vectors_without_noise(patch):
    release_sum, item_vectors = server_app.release_sum, server_app.item_vectors
    sums = []

    def remembered(summed, **settings):
        sums.append(summed)
        return release_sum(summed, **settings)

    def of_the_sum(noisy, **settings):
        return item_vectors(sums[-1]["cooccurrence"].numpy(), **settings)

    patch.setattr(server_app, "release_sum", remembered)
    patch.setattr(server_app, "item_vectors", of_the_sum)


def popularity_not_clipped(patch):
    contribution = host.popularity_contribution

    def all_of_it(histories, *, clip_norm, **settings):
        update = contribution(histories, clip_norm=np.inf, **settings)
        return updates.ClippedUpdate(update.arrays, update.devices, clip_norm)

    patch.setattr(host, "popularity_contribution", all_of_it)
    patch.setattr(updates, "_SLACK", np.inf)


def cooccurrence_not_clipped(patch):
    contribution = host.cooccurrence_contribution

    def more_of_it(histories, *, clip_norm, **settings):
        update = contribution(histories, clip_norm=5 * clip_norm, **settings)
        return updates.ClippedUpdate(update.arrays, update.devices, clip_norm)

    patch.setattr(host, "cooccurrence_contribution", more_of_it)


def cooccurrence_not_clipped_nor_checked(patch):
    cooccurrence_not_clipped(patch)
    patch.setattr(updates, "_SLACK", np.inf)


def no_entry(patch):
    reserve, commit = Ledger.reserve, Ledger.commit
    unwritten = -1

    def forgetful(self, **release):
        return unwritten if release.get("round") == 2 else reserve(self, **release)

    def nothing_to_confirm(self, release, **figures):
        if release != unwritten:
            commit(self, release, **figures)

    patch.setattr(Ledger, "reserve", forgetful)
    patch.setattr(Ledger, "commit", nothing_to_confirm)


def entry_after_the_release(patch):
    configure, aggregate = PrivateAveraging.configure_train, PrivateAveraging.aggregate_train
    reserve = Ledger.reserve
    late = []

    def ask_first(self, *arguments):
        def later(_, **release):
            late.append(release)
            return -1

        with pytest.MonkeyPatch.context() as postponed:
            postponed.setattr(Ledger, "reserve", later)
            return configure(self, *arguments)

    def then_reserve(self, *arguments):
        self._open = replace(self._open, release=reserve(self._ledger, **late.pop()))
        return aggregate(self, *arguments)

    patch.setattr(PrivateAveraging, "configure_train", ask_first)
    patch.setattr(PrivateAveraging, "aggregate_train", then_reserve)


def counts_made_up(patch):
    commit = Ledger.commit

    def as_expected(self, release, **figures):
        commit(self, release, **{**figures, "cohort_size": figures["cohort_size"] + 1})

    patch.setattr(Ledger, "commit", as_expected)


def another_clip_declared(patch):
    reserve = Ledger.reserve

    def flattering(self, *, mechanism, **release):
        less = replace(mechanism, clip_norm=mechanism.clip_norm / 2)
        return reserve(self, mechanism=less, **release)

    patch.setattr(Ledger, "reserve", flattering)


def another_task_declared(patch):
    reserve = Ledger.reserve

    def misnamed(self, *, task, **release):
        return reserve(self, task=task.replace("cooccurrence", "popularity"), **release)

    patch.setattr(Ledger, "reserve", misnamed)


def refunded(patch):
    open_ledger = Ledger.open.__func__

    def forget_what_is_pending(cls, path, **named):
        entries = read_ledger(path)
        lines = path.read_bytes().splitlines(keepends=True)
        while isinstance(entries[-1], Reserve):
            entries.pop()
            lines.pop()
        path.write_bytes(b"".join(lines))
        return open_ledger(cls, path, **named)

    patch.setattr(Ledger, "open", classmethod(forget_what_is_pending))


STATISTICS = ("popularity", "cooccurrence")
NOISE = {"noise/size", "noise/layers", "noise/shape", "noise/beside-updates"}
NOISE |= {f"{name}/{what}" for name in STATISTICS for what in ("noise", "beside-updates")}
SUMS = {f"{name}/sum" for name in STATISTICS}
CAUGHT = {
    "noise × 0.1": (scaled_noise(0.1), ("idle", "noisy"), NOISE),
    "noise × 0.5": (scaled_noise(0.5), ("idle", "noisy"), NOISE),
    "noise × 1.5": (scaled_noise(1.5), ("idle", "noisy"), NOISE),
    "noise not normal": (uniform_noise, ("idle",), {"noise/shape"}),
    "a layer without noise": (layer_without_noise, ("idle",), {"noise/layers"}),
    "noise only where nobody contributes": (
        noise_only_without_updates,
        ("noisy",),
        {"noise/beside-updates"},
    ),
    "a step beside what is released": (step_beside_the_noise, ("idle",), {"noise/step"}),
    "same seed every round": (
        same_seed_every_round,
        ("idle",),
        {"correlation/rounds", "sampler/rounds"},
    ),
    "same key every run": (same_key_every_run, ("twins",), {"correlation/runs"}),
    "same noise in every layer": (same_noise_in_every_layer, ("idle",), {"correlation/layers"}),
    "clip skipped for a layer": (layer_not_clipped, ("exact",), {"clip/devices"}),
    "clip skipped for a layer, no check": (
        layer_not_clipped_nor_checked,
        ("exact",),
        {"clip/devices", "clip/server"},
    ),
    "each layer clipped by itself": (
        each_layer_clipped_by_itself,
        ("exact",),
        {"clip/devices", "clip/server"},
    ),
    "a server that takes any norm": (server_takes_any_norm, ("exact",), {"clip/server", *SUMS}),
    "a client × 5 on its host": (client_weighted_on_its_host, ("exact",), {"weights/alone"}),
    "a reply × 5 on the server": (reply_weighted_by(strategy), ("exact",), {"weights/sum"}),
    "a reply × 5 in the statistics": (reply_weighted_by(server_app), ("exact",), SUMS),
    "statistics divided": (statistics_divided, ("exact",), SUMS),
    "weighted by history": (weighted_by_history, ("exact",), {"weights/equal"}),
    "replies counted twice": (replies_count_as_often_as_they_come, ("exact",), {"weights/twice"}),
    "devices named twice": (devices_may_be_named_twice, ("exact",), {"weights/twice"}),
    "divided by replies": (divided_by_replies, ("exact",), {"divisor/dropouts"}),
    "fixed size declared as Poisson": (fixed_size, ("idle",), {"sampler/spread"}),
    "another rate than declared": (wrong_rate, ("idle",), {"sampler/rate"}),
    "favourite devices": (favourites, ("idle",), {"sampler/devices"}),
    **{
        f"{name}, noise × {factor}": (
            statistic_with_noise(name, factor),
            ("idle", "noisy"),
            {f"{name}/noise", f"{name}/beside-updates"},
        )
        for name in STATISTICS
        for factor in (0, 0.1, 0.5, 1.5)
    },
    "same noise in every statistic": (
        same_noise_in_every_statistic,
        ("idle",),
        {"correlation/statistics"},
    ),
    "popularity not clipped": (popularity_not_clipped, ("exact",), {"popularity/clip"}),
    "co-occurrence not clipped": (cooccurrence_not_clipped, ("exact",), {"cooccurrence/clip"}),
    "co-occurrence not clipped, no check": (
        cooccurrence_not_clipped_nor_checked,
        ("exact",),
        {"cooccurrence/clip", "cooccurrence/sum"},
    ),
    "item vectors of the sum without noise": (
        vectors_without_noise,
        ("noisy",),
        {"cooccurrence/vectors"},
    ),
    "a release without an entry": (no_entry, ("idle",), {"ledger/reserved", "ledger/counts"}),
    "an entry after the release": (entry_after_the_release, ("idle",), {"ledger/reserved"}),
    "counts made up": (counts_made_up, ("idle",), {"ledger/counts"}),
    "another clip declared": (another_clip_declared, ("idle",), {"ledger/reserved", "noise/size"}),
    "another task declared": (another_task_declared, ("idle",), {"ledger/reserved"}),
    "refunded after a crash": (refunded, ("charged",), {"ledger/crash"}),
}


# Each federation by itself: a fault is injected where it shows, beside others that are faultless.
RUNS = {
    "idle": lambda probed, folder: probed.run_idle(folder / "idle", rounds=ROUNDS),
    "twins": lambda probed, folder: probed.run_twins(folder),
    "exact": lambda probed, folder: probed.run_busy(folder / "e", meddling=MEDDLING, noise=False),
    "noisy": lambda probed, folder: probed.run_busy(folder / "n", meddling=MEDDLING, noise=True),
    "charged": lambda probed, folder: probed.run_crashed(folder / "crashed"),
}


@pytest.fixture(scope="module")
def faultless(probed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faultless")
    return Seen(**{name: run(probed, folder) for name, run in RUNS.items()})


@pytest.mark.parametrize("fault", CAUGHT)
def test_a_faulty_build_is_caught(fault, probed, faultless, tmp_path, monkeypatch):
    inject, runs, expected = CAUGHT[fault]
    inject(monkeypatch)
    seen = replace(faultless, **{name: RUNS[name](probed, tmp_path) for name in runs})
    assert expected <= {found.name for found in measure(seen) if not found.holds}


# --- no fault --------------------------------------------------------------------------------------


@pytest.fixture
def _repeatable(monkeypatch):
    """What the operating system draws, the same every time."""
    monkeypatch.setattr(randomness.os, "urandom", np.random.default_rng(0).bytes)


# Settings that don't touch each other share a run; as it is, the command's test runs it.
VARIANTS = {
    "recurrent, several steps, without a seed": {
        "seed": None,
        "model": {"encoder": "gru"},
        "training": {"local_steps": 3, "targets": "all"},
        "statistics": {"cooccurrence": 5},
    },
    "attention, trainable items, momentum": {
        "model": {"encoder": "transformer", "item_ids": True},
        "training": {"server_optimizer": "fedavg", "server_learning_rate": 1.0},
    },
    "plain averaging, no popularity": {
        "training": {"server_optimizer": "fedavg", "server_momentum": 0.0},
        "privacy": {"statistics_share": 0.0},
    },
    "everyone, always": {"training": {"sampling_probability": 1.0}},
    "few, no co-occurrence": {
        "training": {"sampling_probability": 0.005},
        "statistics": {"cooccurrence": 0},
    },
}


@pytest.mark.usefixtures("_repeatable")
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_fault_every_probe_holds(variant):
    config = config_of(**VARIANTS[variant])
    notes = []
    report = run_probes(config, rounds=ROUNDS, advance=notes.append)
    assert fired(report) == set()
    assert report.holds
    assert len(notes) == probe.STEPS
    assert report.false_alarm_rate <= 0.01
    assert report.randomness == ("csprng" if config.seed is None else "seeded")
    areas = {found.name.partition("/")[0] for found in report.probes}
    expected = {"noise", "correlation", "clip", "weights", "divisor", "sampler", "ledger"}
    if config.privacy.statistics_share != 0:
        expected |= {"popularity"} if config.statistics.cooccurrence == 0 else set(STATISTICS)
    assert areas == expected


@pytest.mark.slow
def test_chance_raises_no_more_alarms_in_a_hundred_seeds_than_declared(
    probed, tmp_path, monkeypatch
):
    monkeypatch.setattr(probe_runs, "_IDLE_HOSTS", 1)  # fewer messages of the same devices

    def idle(seed):
        config = probed.config.model_copy(update={"seed": seed})
        return replace(probed, config=config).run_idle(tmp_path / str(seed), rounds=2)

    twins = [idle(100), idle(101)]
    alarms = dict.fromkeys(CHANCE, 0)
    for seed in range(100):
        run = idle(seed)
        found = [
            *noise_probes(run, run),
            *step_probes(run, run),
            *correlation_probes(run, twins),
            *sampler_probes(run),
            *statistics_noise_probes(run, run),
        ]
        for result in found:
            if result.result.false_alarm_rate:
                alarms[result.name] += not result.holds
            else:
                assert result.holds
        twins = [twins[1], run]
    assert sum(alarms.values()) <= binom.isf(1e-3, 100 * len(CHANCE), FALSE_ALARM_RATE)
    assert max(alarms.values()) <= binom.isf(1e-3 / len(CHANCE), 100, FALSE_ALARM_RATE)


CHANCE = {
    *(f"noise/{what}" for what in ("size", "layers", "mean", "shape", "beside-updates")),
    *(f"correlation/{what}" for what in ("rounds", "layers", "coordinates", "runs", "statistics")),
    *(f"sampler/{what}" for what in ("rate", "spread", "devices", "rounds")),
    *(f"{name}/{what}" for name in STATISTICS for what in ("noise", "beside-updates")),
}


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch):
    path = tmp_path / "研究.toml"

    # As the command does, in fewer rounds.
    monkeypatch.setattr(probe, "run_probes", partial(run_probes, rounds=ROUNDS))

    def call(*arguments, **sections):
        path.write_text(config_of(**sections).to_toml(), encoding="utf-8")
        command = typer.main.get_command(probe_cli.app)
        return CliRunner().invoke(command, ["--config", str(path), *arguments])

    return call


@pytest.fixture(scope="module")
def reported(probed):
    """What the probes say, for tests of what becomes of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probed, "of", lambda config: replace(probed, config=config))
        patch.setattr(randomness.os, "urandom", np.random.default_rng(0).bytes)
        return run_probes(config_of(), rounds=ROUNDS)


@pytest.mark.usefixtures("once", "_repeatable")
def test_the_command_prints_one_object(call):
    found = call("--json")
    assert found.exit_code == 0
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["holds"] is True
    assert result["declared"]["noise_multiplier"] == 1.5
    names = [entry["name"] for entry in result["probes"]]
    assert set(names) >= CHANCE
    assert len(names) == len(set(names))
    for entry in result["probes"]:
        low, high = entry["expected"]
        assert low <= entry["measured"] <= high
        assert entry["sentence"].endswith(".")
    assert "Probing 5/5" in found.stderr


def test_results_are_kept_with_what_they_are_of_and_never_replaced(
    call, reported, tmp_path, monkeypatch
):
    monkeypatch.setattr(probe, "run_probes", lambda config, *, advance: reported)
    found = call("--out", str(tmp_path), "--json")
    kept = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert kept == json.loads(found.stdout.splitlines()[-1])
    assert kept["run"]["config_digest"] == config_of().digest()
    assert set(kept["run"]) == {"created", "version", "config_digest", "command"}
    for taken in (tmp_path, tmp_path / "probe.json"):
        again = call("--out", str(taken))
        assert isinstance(again.exception, RunFolderError)
        assert "exists already" in str(again.exception)


@pytest.mark.usefixtures("once")
def test_the_command_names_what_fails(call, monkeypatch):
    scaled_noise(0.5)(monkeypatch)
    found = call()
    assert found.exit_code == 1
    assert "FAILS" in found.stdout
    assert "noise/size: Not so: " in found.stdout
    assert "measured 0.5" in found.stdout
    assert "seeded run" in found.stderr


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"privacy": {"enabled": False, "noise_multiplier": None}}, "privacy.enabled = false"),
        ({"privacy": {"epsilon": 0.01, "noise_multiplier": 0.5}}, "above the target"),
    ],
)
def test_a_configuration_without_a_mechanism_is_refused(call, sections, complaint):
    found = call(**sections)
    assert isinstance(found.exception, ConfigError)
    assert complaint in str(found.exception)


def test_the_table_fits_eighty_columns_and_cuts_no_name(call, reported, monkeypatch):
    monkeypatch.setattr(probe, "run_probes", lambda config, *, advance: reported)
    monkeypatch.setenv("COLUMNS", "80")
    found = call()
    table = [line for line in found.stdout.splitlines() if " probes hold" not in line]
    assert max(map(len, table)) <= 80
    names = {
        entry["name"] for entry in json.loads(call("--json").stdout.splitlines()[-1])["probes"]
    }
    assert names <= {line.split()[0] for line in table if line.strip()}


# Noise is calibrated, and so shows whose rate and δ it is of.
SERVER = {
    "federation": {"population_size": 900},
    "items": {"dimension": 8},
    "statistics": {"as_of": dt.date(2026, 1, 1)},
    "model": SMALL["model"],
    "training": {"cohort": 90, "rounds": 3, "negatives": 5},
}


def test_a_server_is_probed_with_its_own_rate_and_noise(tmp_path, monkeypatch):
    deployed = ServerConfig.model_validate({**SERVER, "privacy": {"statistics_share": 0.3}})
    (tmp_path / "server.toml").write_text(deployed.to_toml(), encoding="utf-8")
    seen = []

    def run(config, *, advance):
        seen.append(Probed.of(config).plan)
        raise ConfigError("enough seen")

    monkeypatch.setattr(probe, "run_probes", run)
    command = typer.main.get_command(probe_cli.app)
    for named in (tmp_path, tmp_path / "server.toml"):
        found = CliRunner().invoke(command, ["--config", str(named)])
        assert str(found.exception) == "enough seen"
    plan = plan_budget(
        deployed.privacy,
        deployed.training,
        population_size=900,
        sizes=Sizes(n_items=10, scales=3, weights=10),
    )
    for each in seen:
        assert each.training.sampling_probability == plan.training.sampling_probability == 0.1
        assert each.training.noise_multiplier == plan.training.noise_multiplier
        assert each.popularity.noise_multiplier == plan.popularity.noise_multiplier
        assert each.delta == plan.delta == deployed.delta


def test_a_run_is_probed_with_the_noise_its_ledger_tells(tmp_path):
    config = RunConfig.model_validate({**SMALL, "privacy": {}, "training": {"rounds": 3}})
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    sizes = Sizes(n_items=4_000, scales=3, weights=20_000)
    plan = plan_budget(config.privacy, config.training, population_size=5_000, sizes=sizes)
    with Ledger.create(
        tmp_path / "ledger.jsonl",
        signing_key=SigningKey.generate(),
        target_epsilon=config.privacy.epsilon,
        randomness="csprng",
        code_version="1",
        config_digest=config.digest(),
        population="town",
        population_size=5_000,
        delta=plan.delta,
    ) as ledger:
        _, before = probe_cli._read(tmp_path)
        assert before.privacy.noise_multiplier is None
        ledger.reserve(task="statistics/popularity", mechanism=plan.popularity, run="r")
        ledger.reserve(task="training", mechanism=plan.training, run="r", round=1)
    settings, probed = probe_cli._read(tmp_path)
    assert settings == config
    found = Probed.of(probed).plan
    assert found.training.noise_multiplier == plan.training.noise_multiplier
    assert found.training.sampling_probability == plan.training.sampling_probability
    assert found.popularity.noise_multiplier == pytest.approx(plan.popularity.noise_multiplier)
    assert found.delta == plan.delta


@pytest.mark.usefixtures("once", "_repeatable")
def test_results_are_of_the_configuration_that_the_servers_ledger_names(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "run_probes", partial(run_probes, rounds=ROUNDS))
    sections = {**SERVER, "privacy": {"noise_multiplier": 1.5}}
    deployed = ServerConfig.model_validate(sections)
    (tmp_path / "server.toml").write_text(deployed.to_toml(), encoding="utf-8")
    command = typer.main.get_command(probe_cli.app)
    found = CliRunner().invoke(command, ["--config", str(tmp_path), "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    kept = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert kept["run"]["config_digest"] == deployed.run().digest()


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    command = typer.main.get_command(probe_cli.app)
    found = CliRunner().invoke(command, ["--config", str(tmp_path)])
    assert isinstance(found.exception, ConfigError)
    assert "config.toml: can't read" in str(found.exception)
