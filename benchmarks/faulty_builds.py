"""Faulty builds: each fault changes code that a federation runs, and probes that must notice it.

What ``python -m benchmarks.audit`` measures and the tests assert.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedprofile.client import host, local_training
from fedprofile.client.host import DeviceHost
from fedprofile.common import randomness, updates
from fedprofile.common.ledger import Ledger
from fedprofile.common.ledger_entries import Reserve, read_ledger
from fedprofile.common.messages import read_update
from fedprofile.common.randomness import NoiseSource
from fedprofile.common.successors import Successors
from fedprofile.common.user_level_optimizer import UserLevelDPOptimizer
from fedprofile.server import app as server_app
from fedprofile.server import strategy, validation
from fedprofile.server.strategy import PrivateAveraging
from fedprofile.simulations import probe_runs
from fedprofile.simulations.chance_probes import (
    correlation_probes,
    noise_probes,
    sampler_probes,
    statistics_noise_probes,
)
from fedprofile.simulations.exact_probes import MEDDLING, step_probes
from fedprofile.simulations.probe import Seen, measure
from fedprofile.simulations.probe_observed import Observed
from fedprofile.simulations.probe_runs import Probed

ROUNDS = 10
SMALL: dict[str, Any] = {
    "seed": 1,
    "items": {"dimension": 8},
    "model": {"encoder": "mean", "width": 4, "heads": 1, "window": 6, "half_lives_days": [30]},
    "training": {"negatives": 5},
    "privacy": {"noise_multiplier": 1.5},  # calibration takes seconds
    "engine": {"threads": 1},
}
"""Sections of the configuration that the builds are tried with."""
Inject = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """A fault and what must notice it.

    Attributes:
        inject: changes the program.
        runs: federations of :data:`RUNS` that it shows in.
        caught_by: probes that must fail; others may.
    """

    inject: Inject
    runs: tuple[str, ...]
    caught_by: set[str]


def scaled_noise(factor):
    def inject(patch: pytest.MonkeyPatch) -> None:
        normal = NoiseSource.normal
        patch.setattr(
            NoiseSource,
            "normal",
            lambda self, shape, *, stddev: factor * normal(self, shape, stddev=stddev),
        )

    return inject


def uniform_noise(patch: pytest.MonkeyPatch) -> None:
    def uniform(self, shape, *, stddev):
        numbers = self.uniforms(int(np.prod(shape))).reshape(shape)
        return stddev * np.sqrt(12) * (numbers - 0.5)

    patch.setattr(NoiseSource, "normal", uniform)


def layer_without_noise(patch: pytest.MonkeyPatch) -> None:
    normal = NoiseSource.normal

    def but_one(self, shape, *, stddev):
        return normal(self, shape, stddev=0.0 if shape == (4,) else stddev)

    patch.setattr(NoiseSource, "normal", but_one)


def noise_only_without_updates(patch: pytest.MonkeyPatch) -> None:
    take = UserLevelDPOptimizer._take

    def and_forget(self, summed):
        take(self, summed)
        if any(float(total.abs().sum()) for total in summed.values()):
            self._mechanism = replace(self._mechanism, noise_multiplier=0.0)

    patch.setattr(UserLevelDPOptimizer, "_take", and_forget)


def step_beside_the_noise(patch: pytest.MonkeyPatch) -> None:
    step = PrivateAveraging._private_step

    def and_a_bit(self, server_round, tally):
        norm = step(self, server_round, tally)
        first = next(iter(self._parameters.values()))
        first.data += 1e-3
        return norm

    patch.setattr(PrivateAveraging, "_private_step", and_a_bit)


def same_seed_every_round(patch: pytest.MonkeyPatch) -> None:
    child = NoiseSource.child
    patch.setattr(NoiseSource, "child", lambda self, label: child(self, label.partition("/")[0]))


def same_key_every_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(randomness.os, "urandom", lambda n: bytes(n))


def same_noise_in_every_layer(patch: pytest.MonkeyPatch) -> None:
    normal = NoiseSource.normal

    def afresh(self, shape, *, stddev):
        copy = NoiseSource(kind=self.kind, key=self._key)
        return normal(copy, shape, stddev=stddev)

    patch.setattr(NoiseSource, "normal", afresh)


def layer_not_clipped(patch: pytest.MonkeyPatch) -> None:
    clip_and_sum = local_training.clip_and_sum

    def but_one(stacked, *, clip_norm):
        sums, norms = clip_and_sum(stacked, clip_norm=clip_norm)
        sums["out.bias"] = stacked["out.bias"].sum(dim=0)
        return sums, norms

    patch.setattr(local_training, "clip_and_sum", but_one)


def layer_not_clipped_nor_checked(patch: pytest.MonkeyPatch) -> None:
    layer_not_clipped(patch)
    patch.setattr(updates, "_SLACK", np.inf)


def each_layer_clipped_by_itself(patch: pytest.MonkeyPatch) -> None:
    clip_and_sum = local_training.clip_and_sum

    def apart(stacked, *, clip_norm):
        sums = {}
        for name, layer in stacked.items():
            single, norms = clip_and_sum({name: layer}, clip_norm=clip_norm)
            sums.update(single)
        return sums, norms

    patch.setattr(local_training, "clip_and_sum", apart)
    patch.setattr(updates, "_SLACK", np.inf)


def server_takes_any_norm(patch: pytest.MonkeyPatch) -> None:
    read_update = validation.read_update

    def credulous(reply, *, binding, shapes):
        with pytest.MonkeyPatch.context() as unchecked:
            unchecked.setattr(updates, "_SLACK", np.inf)
            return read_update(reply, binding=binding, shapes=shapes)

    patch.setattr(validation, "read_update", credulous)


def client_weighted_on_its_host(patch: pytest.MonkeyPatch) -> None:
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
    def inject(patch: pytest.MonkeyPatch) -> None:
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


def weighted_by_history(patch: pytest.MonkeyPatch) -> None:
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


def replies_count_as_often_as_they_come(patch: pytest.MonkeyPatch) -> None:
    add_up = strategy.add_up

    def all_of_them(replies, **settings):
        replies = list(replies)
        tally = add_up(replies, **settings)
        copies = len(replies) / max(1, len({id(reply) for reply in replies}))
        return replace(tally, total={name: copies * t for name, t in tally.total.items()})

    patch.setattr(strategy, "add_up", all_of_them)


def devices_may_be_named_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(host, "np", SimpleNamespace(**{**vars(np), "unique": lambda devices: devices}))


def divided_by_replies(patch: pytest.MonkeyPatch) -> None:
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


def fixed_size(patch: pytest.MonkeyPatch) -> None:
    def exactly(mechanism, *, coins):
        order = np.argsort(coins.uniforms(mechanism.population_size))
        return np.sort(order[: round(mechanism.expected_cohort)])

    patch.setattr(strategy, "sample_cohort", exactly)


def wrong_rate(patch: pytest.MonkeyPatch) -> None:
    sample = strategy.sample_cohort

    def more(mechanism, *, coins):
        rate = min(1.0, 1.2 * mechanism.sampling_probability)
        return sample(replace(mechanism, sampling_probability=rate), coins=coins)

    patch.setattr(strategy, "sample_cohort", more)


def favourites(patch: pytest.MonkeyPatch) -> None:
    def half_and_half(mechanism, *, coins):
        n, q = mechanism.population_size, mechanism.sampling_probability
        return np.flatnonzero(coins.uniforms(n) < np.repeat([1.6 * q, 0.4 * q], n // 2))

    patch.setattr(strategy, "sample_cohort", half_and_half)


def statistic_with_noise(name, factor):
    def inject(patch: pytest.MonkeyPatch) -> None:
        release_sum = server_app.release_sum

        def scaled(summed, **settings):
            noisy = release_sum(summed, **settings)
            if name in summed:
                noisy[name] = summed[name] + factor * (noisy[name] - summed[name])
            return noisy

        patch.setattr(server_app, "release_sum", scaled)

    return inject


def statistics_divided(patch: pytest.MonkeyPatch) -> None:
    release_sum = server_app.release_sum

    def mean(summed, *, mechanism, noise):
        shares = {name: total / mechanism.population_size for name, total in summed.items()}
        return release_sum(shares, mechanism=mechanism, noise=noise)

    patch.setattr(server_app, "release_sum", mean)


def same_noise_in_every_statistic(patch: pytest.MonkeyPatch) -> None:
    child = NoiseSource.child

    def of_all(self, label):
        return child(self, "statistics" if label.startswith("statistics/") else label)

    patch.setattr(NoiseSource, "child", of_all)


def vectors_without_noise(patch: pytest.MonkeyPatch) -> None:
    release_sum, relations = server_app.release_sum, server_app.item_relations
    sums = []

    def remembered(summed, **settings):
        sums.append(summed)
        return release_sum(summed, **settings)

    def of_the_sum(_, **settings):
        return relations(sums[-1]["cooccurrence"].numpy(), **settings)

    patch.setattr(server_app, "release_sum", remembered)
    patch.setattr(server_app, "item_relations", of_the_sum)


def pair_beside_the_release(patch: pytest.MonkeyPatch) -> None:
    relations = server_app.item_relations

    def and_one_more(noisy, **settings):
        told = relations(noisy, **settings)
        one = Successors.of(np.array([2]), np.array([3]), np.array([0.1]))
        return replace(told, successors=one)

    patch.setattr(server_app, "item_relations", and_one_more)


def popularity_not_clipped(patch: pytest.MonkeyPatch) -> None:
    contribution = host.popularity_contribution

    def all_of_it(histories, *, clip_norm, **settings):
        update = contribution(histories, clip_norm=np.inf, **settings)
        return updates.ClippedUpdate(update.arrays, update.devices, clip_norm)

    patch.setattr(host, "popularity_contribution", all_of_it)
    patch.setattr(updates, "_SLACK", np.inf)


def cooccurrence_not_clipped(patch: pytest.MonkeyPatch) -> None:
    contribution = host.pairs_contribution

    def more_of_it(histories, *, clip_norm, **settings):
        update = contribution(histories, clip_norm=5 * clip_norm, **settings)
        return updates.ClippedUpdate(update.arrays, update.devices, clip_norm)

    patch.setattr(host, "pairs_contribution", more_of_it)


def cooccurrence_not_clipped_nor_checked(patch: pytest.MonkeyPatch) -> None:
    cooccurrence_not_clipped(patch)
    patch.setattr(updates, "_SLACK", np.inf)


def no_entry(patch: pytest.MonkeyPatch) -> None:
    reserve, commit = Ledger.reserve, Ledger.commit
    unwritten = -1

    def forgetful(self, **release):
        return unwritten if release.get("round") == 2 else reserve(self, **release)

    def nothing_to_confirm(self, release, **figures):
        if release != unwritten:
            commit(self, release, **figures)

    patch.setattr(Ledger, "reserve", forgetful)
    patch.setattr(Ledger, "commit", nothing_to_confirm)


def entry_after_the_release(patch: pytest.MonkeyPatch) -> None:
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


def counts_made_up(patch: pytest.MonkeyPatch) -> None:
    commit = Ledger.commit

    def as_expected(self, release, **figures):
        commit(self, release, **{**figures, "cohort_size": figures["cohort_size"] + 1})

    patch.setattr(Ledger, "commit", as_expected)


def another_clip_declared(patch: pytest.MonkeyPatch) -> None:
    reserve = Ledger.reserve

    def flattering(self, *, mechanism, **release):
        less = replace(mechanism, clip_norm=mechanism.clip_norm / 2)
        return reserve(self, mechanism=less, **release)

    patch.setattr(Ledger, "reserve", flattering)


def another_task_declared(patch: pytest.MonkeyPatch) -> None:
    reserve = Ledger.reserve

    def misnamed(self, *, task, **release):
        return reserve(self, task=task.replace("cooccurrence", "popularity"), **release)

    patch.setattr(Ledger, "reserve", misnamed)


def refunded(patch: pytest.MonkeyPatch) -> None:
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
PROBED: dict[str, Fault] = {
    "noise × 0.1": Fault(scaled_noise(0.1), ("idle", "noisy"), NOISE),
    "noise × 0.5": Fault(scaled_noise(0.5), ("idle", "noisy"), NOISE),
    "noise × 1.5": Fault(scaled_noise(1.5), ("idle", "noisy"), NOISE),
    "noise not normal": Fault(uniform_noise, ("idle",), {"noise/shape"}),
    "a layer without noise": Fault(layer_without_noise, ("idle",), {"noise/layers"}),
    "noise only where nobody contributes": Fault(
        noise_only_without_updates,
        ("noisy",),
        {"noise/beside-updates"},
    ),
    "a step beside what is released": Fault(step_beside_the_noise, ("idle",), {"noise/step"}),
    "same seed every round": Fault(
        same_seed_every_round,
        ("idle",),
        {"correlation/rounds", "sampler/rounds"},
    ),
    "same key every run": Fault(same_key_every_run, ("twins",), {"correlation/runs"}),
    "same noise in every layer": Fault(
        same_noise_in_every_layer, ("idle",), {"correlation/layers"}
    ),
    "clip skipped for a layer": Fault(layer_not_clipped, ("exact",), {"clip/devices"}),
    "clip skipped for a layer, no check": Fault(
        layer_not_clipped_nor_checked,
        ("exact",),
        {"clip/devices", "clip/server"},
    ),
    "each layer clipped by itself": Fault(
        each_layer_clipped_by_itself,
        ("exact",),
        {"clip/devices", "clip/server"},
    ),
    "a server that takes any norm": Fault(
        server_takes_any_norm, ("exact",), {"clip/server", *SUMS}
    ),
    "a client × 5 on its host": Fault(client_weighted_on_its_host, ("exact",), {"weights/alone"}),
    "a reply × 5 on the server": Fault(reply_weighted_by(strategy), ("exact",), {"weights/sum"}),
    "a reply × 5 in the statistics": Fault(reply_weighted_by(server_app), ("exact",), SUMS),
    "statistics divided": Fault(statistics_divided, ("exact",), SUMS),
    "weighted by history": Fault(weighted_by_history, ("exact",), {"weights/equal"}),
    "replies counted twice": Fault(
        replies_count_as_often_as_they_come, ("exact",), {"weights/twice"}
    ),
    "devices named twice": Fault(devices_may_be_named_twice, ("exact",), {"weights/twice"}),
    "divided by replies": Fault(divided_by_replies, ("exact",), {"divisor/dropouts"}),
    "fixed size declared as Poisson": Fault(fixed_size, ("idle",), {"sampler/spread"}),
    "another rate than declared": Fault(wrong_rate, ("idle",), {"sampler/rate"}),
    "favourite devices": Fault(favourites, ("idle",), {"sampler/devices"}),
    **{
        f"{name}, noise × {factor}": Fault(
            statistic_with_noise(name, factor),
            ("idle", "noisy"),
            {f"{name}/noise", f"{name}/beside-updates"},
        )
        for name in STATISTICS
        for factor in (0, 0.1, 0.5, 1.5)
    },
    "same noise in every statistic": Fault(
        same_noise_in_every_statistic,
        ("idle",),
        {"correlation/statistics"},
    ),
    "popularity not clipped": Fault(popularity_not_clipped, ("exact",), {"popularity/clip"}),
    "co-occurrence not clipped": Fault(cooccurrence_not_clipped, ("exact",), {"cooccurrence/clip"}),
    "co-occurrence not clipped, no check": Fault(
        cooccurrence_not_clipped_nor_checked,
        ("exact",),
        {"cooccurrence/clip", "cooccurrence/sum"},
    ),
    "item vectors of the sum without noise": Fault(
        vectors_without_noise,
        ("noisy",),
        {"cooccurrence/vectors"},
    ),
    "a pair told that wasn't released": Fault(
        pair_beside_the_release,
        ("noisy",),
        {"cooccurrence/vectors"},
    ),
    "a release without an entry": Fault(no_entry, ("idle",), {"ledger/reserved", "ledger/counts"}),
    "an entry after the release": Fault(entry_after_the_release, ("idle",), {"ledger/reserved"}),
    "counts made up": Fault(counts_made_up, ("idle",), {"ledger/counts"}),
    "another clip declared": Fault(
        another_clip_declared, ("idle",), {"ledger/reserved", "noise/size"}
    ),
    "another task declared": Fault(another_task_declared, ("idle",), {"ledger/reserved"}),
    "refunded after a crash": Fault(refunded, ("charged",), {"ledger/crash"}),
}


RUNS: dict[str, Callable[[Probed, Path], Any]] = {
    "idle": lambda probed, folder: probed.run_idle(folder / "idle", rounds=ROUNDS),
    "twins": lambda probed, folder: probed.run_twins(folder),
    "exact": lambda probed, folder: probed.run_busy(folder / "e", meddling=MEDDLING, noise=False),
    "noisy": lambda probed, folder: probed.run_busy(folder / "n", meddling=MEDDLING, noise=True),
    "charged": lambda probed, folder: probed.run_crashed(folder / "crashed"),
}
"""Each federation by itself: a fault is injected where it shows, beside others that are faultless."""


def faultless(probed: Probed, folder: Path) -> Seen:
    """All federations of a build without a fault."""
    folder.mkdir(exist_ok=True)
    return Seen(**{name: run(probed, folder) for name, run in RUNS.items()})


def fired(probed: Probed, seen: Seen, fault: Fault, folder: Path) -> set[str]:
    """The probes that fail where ``fault`` is injected into the federations that it shows in."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        fault.inject(patch)
        faulty = replace(seen, **{name: RUNS[name](probed, folder) for name in fault.runs})
        return {found.name for found in measure(faulty) if not found.holds}


def chance_alarms(probed: Probed, folder: Path, *, seeds: int) -> dict[str, int]:
    """How often each probe that rests on chance fails in as many federations without a fault."""
    folder.mkdir(exist_ok=True)
    alarms: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_runs, "_IDLE_HOSTS", 1)  # fewer messages of the same devices

        def idle(seed: int) -> Observed:
            config = probed.config.model_copy(update={"seed": seed})
            return replace(probed, config=config).run_idle(folder / str(seed), rounds=2)

        twins = [idle(seeds), idle(seeds + 1)]
        for seed in range(seeds):
            run = idle(seed)
            for found in (
                *noise_probes(run, run),
                *step_probes(run, run),
                *correlation_probes(run, twins),
                *sampler_probes(run),
                *statistics_noise_probes(run, run),
            ):
                if not found.result.false_alarm_rate:
                    assert found.holds, found.name  # exact: nothing is left to chance
                else:
                    alarms[found.name] += not found.holds
            twins = [twins[1], run]
    return dict(alarms)
