"""``fedprofile simulate --plan``: what a run would release, and its cost, before anything is spent."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..common.accounting import epsilon, epsilon_along
from ..common.config import RunConfig
from ..common.formatting import epsilon as epsilon_text
from ..common.formatting import number, scientific
from ..common.mechanism import Mechanism
from ..common.messages import CooccurrenceTask, PopularityTask
from ..server.cooccurrence import head_size, vectors_size
from ..server.split import Sizes, cooccurrence_signal, popularity_signal, training_signal
from ..server.split import Split as BudgetSplit
from .run_folder import RunFolder
from .run_ledger import earlier_releases
from .simulate import Prepared, prepare, read

_BYTES = 4  # of a float32
_MEGABYTE = 1_000_000


def plan(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """The releases of a run, in order; JSON-ready, infinite numbers are None.

    Reads the data for the numbers of users, items and weights, which are public. Makes nothing.

    Args:
        config: of the run.
        folder: where it would be; with a ledger in it, what that counts as earlier counts here too.

    Raises:
        FedprofileError: bad input, or a budget that allows no release.
    """
    log, split, population = read(config)
    earlier = earlier_releases(config, folder, population_size=population.size)
    prepared = prepare(config, log, split, population, earlier)
    releases = _releases(config, prepared)
    before = sum((other.events() for other in earlier), Counter())
    stretches = [Counter({m.event(): times}) for _, m, times, _, _ in releases]
    delta = prepared.plan.delta
    total = epsilon(sum(stretches, before), delta=delta)
    spent = epsilon_along([before, *stretches], delta=delta, total=total)[1:]
    return {
        "enabled": config.privacy.enabled,
        "target_epsilon": prepared.plan.target_epsilon,
        "delta": delta,
        "population_size": population.size,
        "items": population.table.n_items,
        "weights": _sizes(config, prepared).weights,
        "compared_items": _compared(prepared),
        "split": _shares(prepared.plan.split),
        "earlier_epsilon": epsilon(before, delta=delta),
        "releases": [
            {
                "task": task,
                "times": times,
                "sampling_probability": mechanism.sampling_probability,
                "clip_norm": _finite(mechanism.clip_norm),
                "noise_multiplier": mechanism.noise_multiplier,
                "upload_bytes": _BYTES * numbers,
                "expected_signal_to_noise": _finite(signal),
                "epsilon_after": _finite(after),
            }
            for (task, mechanism, times, numbers, signal), after in zip(
                releases, spent, strict=True
            )
        ],
    }


def show(planned: dict[str, Any], out: Console) -> None:
    """The plan as a table on ``out``."""
    title = f"Planned releases over {planned['population_size']:,} users"
    table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("release", no_wrap=True)
    for heading in (
        "times",
        "rate\nq",
        "clip\nC",
        "noise\n/ C",
        "upload",
        "SNR",
        "ε\nafter",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for release in planned["releases"]:
        table.add_row(
            release["task"],
            f"{release['times']:,}",
            number(release["sampling_probability"], 3),
            _infinite(release["clip_norm"], 3),
            f"{release['noise_multiplier']:#.4g}",
            _bytes(release["upload_bytes"]),
            _infinite(release["expected_signal_to_noise"], 2),
            epsilon_text(release["epsilon_after"]),
        )
    out.print(table)
    if (compared := planned["compared_items"]) is not None:
        why = ", as many as the noise allows" if planned["enabled"] else ""
        out.print(
            f"Of {planned['items']:,} items the {compared:,} most popular ones are compared{why}.",
            soft_wrap=True,
        )
    if not planned["enabled"]:
        out.print("Without privacy: no clip, no noise, and no budget to spend.")
        return
    split = planned["split"]
    out.print(
        f"Target: user-level (ε = {epsilon_text(planned['target_epsilon'])}, "
        f"δ = {scientific(planned['delta'])}); {_words(split)}. Nothing was released.",
        soft_wrap=True,
    )


def _releases(
    config: RunConfig, prepared: Prepared
) -> list[tuple[str, Mechanism, int, int, float]]:
    """Task, mechanism, how often, numbers that a device sends, expected signal to noise."""
    planned, sizes, rounds = prepared.plan, _sizes(config, prepared), config.training.rounds
    found = []
    if planned.popularity is not None:
        signal = popularity_signal(
            sizes,
            noise_multiplier=planned.popularity.noise_multiplier,
            population_size=prepared.population.size,
        )
        numbers = sizes.scales * sizes.n_items
        found.append((PopularityTask.name, planned.popularity, 1, numbers, signal))
    if planned.cooccurrence is not None:
        head = head_size(sizes.n_items, planned.cooccurrence, whole=sizes.whole)
        compared = vectors_size(head, planned.cooccurrence)
        signal = cooccurrence_signal(compared, planned.cooccurrence)
        numbers = CooccurrenceTask.numbers(head, whole=sizes.whole)
        found.append((CooccurrenceTask.name, planned.cooccurrence, 1, numbers, signal))
    if rounds:
        signal = training_signal(
            sizes,
            noise_multiplier=planned.training.noise_multiplier,
            expected_cohort=planned.training.expected_cohort,
            rounds=rounds,
        )
        found.append(("training", planned.training, rounds, sizes.weights, signal))
    return found


def _sizes(config: RunConfig, prepared: Prepared) -> Sizes:
    return Sizes.of(prepared.encoder, config.statistics, prepared.population.table)


def _shares(split: BudgetSplit | None) -> dict[str, float] | None:
    if split is None:
        return None
    shares = {"popularity": split.popularity, "cooccurrence": split.cooccurrence}
    return {**shares, "training": max(1 - split.statistics, 0.0)}


def _compared(prepared: Prepared) -> int | None:
    """Items among which pairs are told; None where the release isn't made."""
    mechanism, table = prepared.plan.cooccurrence, prepared.population.table
    return None if mechanism is None else head_size(table.n_items, mechanism, whole=table.whole)


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= _MEGABYTE else f"{size / 1e3:,.1f} kB"


def _words(shares: dict[str, float]) -> str:
    parts = (f"{share:.0%} for {name}" for name, share in shares.items() if share)
    return f"of μ² {', '.join(parts)}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(value: float | None, digits: int) -> str:
    return number(math.inf if value is None else value, digits)
