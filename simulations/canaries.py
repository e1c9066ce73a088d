"""The canary audit: a real federation that an auditor's made-up users joined, and what it gave away.

The auditor sees what the threat model of the guarantee allows: every noisy sum that the server's optimizer
stepped along (``all releases``), or the released model alone (``final model``). Everything that runs is the
run's own: strategy, mechanism, sampler, noise, ledger.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..audit.estimates import Estimate, estimate_epsilon
from ..audit.one_run import (
    Guesses,
    best_bound,
    best_of,
    gaussian_bound,
    guess,
    profile_curve,
    steinke_bound,
    steinke_p_value,
    trade_off_p_value,
)
from ..common.accounting import privacy_profile
from ..common.config import LedgerConfig, RunConfig
from ..common.console import remark, stage
from ..common.errors import ConfigError, RunFolderError
from ..common.files import write_atomically
from ..common.ledger import Ledger
from ..common.ledger_entries import Reserve
from ..common.mechanism import Mechanism
from ..server.app import FederationResult
from ..server.strategy import RoundRecord
from .canary_hosts import AuditedPopulation, Canaries, flattened
from .charts import cosine_histogram, standalone
from .federate import randomness, run_federation, statistics_time
from .membership import attack_membership
from .results import provenance
from .run_folder import RunFolder, check_writable
from .run_ledger import open_ledger
from .simulate import Prepared, prepare, read

FEWEST_CANARIES = 100
CONFIDENCE = 0.95
"""Of the lower bounds."""
FALSE_ALARM_RATE = 0.01
"""Chance, at most, that the verdict is against a run that keeps what it declares."""
_GUESSED = (1 / 2, 1 / 8)
"""Shares of the canaries that are guessed on, fixed before any run."""
OUTSIDE = 0.25
"""Share of the users left out of the run, to compare members with."""
_NORMAL = ("final_model", "sum_of_releases")
"""Estimates that a verdict may rest on. The largest cosine of many rounds isn't normal where canaries are
sampled in few of them: at q = 0.07 over 20 rounds it read 13 where 8 was true."""
_EACH = FALSE_ALARM_RATE / (2 + len(_NORMAL))
"""Of two p-values and those estimates."""
_PROFILE = np.concatenate([np.linspace(0, 20, 401), np.geomspace(20.5, 200, 60)])
"""The ε at which the declared loss distribution is read; more of them make a test sharper, never wrong."""


@dataclass(frozen=True, kw_only=True)
class CanaryOptions:
    """What an audit is asked for besides its configuration.

    Attributes:
        canaries: k, how many join; about half of them take part.
        out: folder of the results and, in ``run``, of the run; None for a new one under ``runs``.
    """

    canaries: int = 1_000
    out: Path | None = None


@dataclass(frozen=True, eq=False)
class _Observed:
    """What the auditor saw: the weights before, the released ones, and each round's noisy mean."""

    before: dict[str, Tensor]
    result: FederationResult
    means: list[NDArray[np.float32]]


def audit_canaries(config: RunConfig, options: CanaryOptions) -> dict[str, Any]:
    """Run a federation with canaries in it; returns and writes what it gave away.

    Raises:
        FedprofileError: bad input, a folder in the way, a run without privacy, or too few canaries.
    """
    started = time.monotonic()
    # Canaries are users of their own, so the budget, anchor and key of the real ones are left alone.
    asked, config = config, config.model_copy(update={"ledger": LedgerConfig()})
    # 1. Refuse at once what would fail in the end.
    _check(config, options)
    run, out = _folders(config, options)
    # 2. Read the data; draw canaries, coins and outsiders before anything runs.
    log, split, everyone = read(config)
    secret = randomness(config, label="canary audit")
    population = AuditedPopulation.of_users(
        everyone,
        Canaries.draw(options.canaries, randomness=secret.child("canaries")),
        outside=secret.child("outsiders").uniforms(everyone.size) < OUTSIDE,
    )
    prepared = prepare(config, log, split, population)
    # 3. Run the federation, watching what it releases.
    run.create(config)
    remark(f"Run folder: {run.path}")
    ledger = open_ledger(
        run,
        config,
        plan=prepared.plan,
        population_size=prepared.population.size,
        earlier=(),
    )
    with ledger:
        observed = _federate(config, prepared, run, ledger)
        # 4. What canaries give away, against what the ledger declares.
        mechanism = prepared.plan.training
        found = _measure(population.canaries, observed, mechanism, ledger)
        declared = {"epsilon": ledger.epsilon_spent(), "delta": ledger.opening.delta}
    # 5. What users give away: membership inference against the released model.
    remark("Membership inference against the released model")
    membership = attack_membership(
        population,
        trainer=prepared.trainer,
        training=config.training,
        before=observed.before,
        after=observed.result.weights,
        statistics=observed.result.statistics,
        seed=0,
    )
    # 6. Write it down.
    findings = _findings(found, declared["epsilon"], declared["delta"])
    document = {
        "run": {
            **provenance(asked),
            "folder": str(run.path),
            "seconds": round(time.monotonic() - started, 1),
            "seed": config.seed,
            "dataset": config.data.path,
            "rounds_done": observed.result.checkpoint.round,
            "weights": sum(w.numel() for w in observed.before.values()),
            "users": population.members.size,
        },
        "declared": {**declared, "mechanism": mechanism.describe()},
        **found,
        "membership": membership,
        "verdict": {
            "holds": not findings,
            "findings": findings,
            "false_alarm_rate": FALSE_ALARM_RATE,
        },
    }
    paths = _write(out, document)
    return {**document, "paths": {"run": str(run.path), **paths}}


@contextmanager
def released_means() -> Iterator[list[NDArray[np.float32]]]:
    """Every vector that an optimizer of this process steps along meanwhile, parameters in their order.

    Inside a federation those are the noisy means, (sum + noise) / (q·N), right after Opacus made them:
    devices train without optimizers. Torch's own hook, so nothing of the run is replaced.
    """
    means: list[NDArray[np.float32]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        means.append(torch.cat([p.grad.detach().flatten() for p in parameters]).numpy().copy())

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield means
    finally:
        handle.remove()


def _check(config: RunConfig, options: CanaryOptions) -> None:
    if not config.privacy.enabled:
        raise ConfigError(
            "privacy.enabled = false: canaries check a declared ε, and this run declares none"
        )
    if config.training.rounds < 1:
        raise ConfigError("training.rounds = 0: canaries join rounds of training; ask for some")
    if options.canaries < FEWEST_CANARIES:
        raise ConfigError(
            f"--canaries must be {FEWEST_CANARIES} or more to tell anything, got {options.canaries}"
        )


def _folders(config: RunConfig, options: CanaryOptions) -> tuple[RunFolder, Path]:
    """Where the run goes and where the results go."""
    if options.out is None:
        run = RunFolder.stamped(f"canaries-{Path(config.data.path).stem or 'run'}")
        return run, run.path / "canaries"
    check_writable(options.out)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise RunFolderError(f"{options.out}: exists already; choose another --out")
    return RunFolder.new(options.out / "run"), options.out


def _federate(
    config: RunConfig, prepared: Prepared, folder: RunFolder, ledger: Ledger
) -> _Observed:
    before = {n: p.detach().clone() for n, p in prepared.encoder.named_parameters()}
    with stage("Training", config.training.rounds) as progress, released_means() as means:

        def on_round(record: RoundRecord, *_: object) -> None:
            note = f"{record.trained:,} devices, {record.seconds:.1f} s"
            progress.advance(note, to=record.round)

        result = run_federation(
            config.model_copy(
                update={"engine": config.engine.model_copy(update={"kind": "local"})}
            ),
            name=folder.path.name,
            population=prepared.population,
            trainer=prepared.trainer,
            encoder=prepared.encoder,
            plan=prepared.plan,
            ledger=ledger,
            checkpoints=folder.checkpoints,
            now=statistics_time(config, prepared.split, prepared.population),
            on_round=on_round,
        )
    ledger.stop(reason=result.stopped or "completed")
    return _Observed(before, result, means)


def _measure(
    canaries: Canaries, observed: _Observed, mechanism: Mechanism, ledger: Ledger
) -> dict[str, Any]:
    """Estimates, bounds and what they were made of, as JSON values."""
    epsilon, delta = ledger.epsilon_spent(), ledger.opening.delta
    scores = score(canaries, observed.before, observed.result.weights, observed.means, mechanism)
    k, known = canaries.count, 1 / np.sqrt(scores.dimension)
    estimates = {
        name: _estimate(canaries, cosines, delta, null_stddev)
        for name, cosines, null_stddev in (
            ("final_model", scores.final, known),
            ("sum_of_releases", scores.total, known),
            ("largest_of_releases", scores.largest, None),
        )
    }
    games = [
        guess(scores.likelihood, canaries.included, guesses=max(2, round(k * share)))
        for share in _GUESSED
    ]
    events = [e.mechanism.event() for e in ledger.entries if isinstance(e, Reserve)]
    declared = profile_curve(_PROFILE, privacy_profile(events, epsilons=_PROFILE))
    return {
        "canaries": {
            "count": k,
            "included": int(canaries.included.sum()),
            "null_stddev": known,
            "cosines_in": np.round(scores.total[canaries.included], 6).tolist(),
            "cosines_out": np.round(scores.total[~canaries.included], 6).tolist(),
        },
        "estimates": {name: asdict(estimate) for name, estimate in estimates.items()},
        "bounds": {
            "confidence": CONFIDENCE,
            "steinke": best_bound(steinke_bound, games, delta=delta, confidence=CONFIDENCE),
            "mahloujifar": best_bound(gaussian_bound, games, delta=delta, confidence=CONFIDENCE),
            "epsilon_p_value": best_of(
                lambda game: steinke_p_value(game, epsilon=epsilon, delta=delta), games
            ),
            "declared_p_value": best_of(lambda game: trade_off_p_value(game, declared), games),
            "guesses": [_shown(game) for game in games],
        },
    }


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each canary shows, float [k] each; higher speaks for "took part".

    Attributes:
        dimension: d, numbers of a release.
        final: cosine with the way from the untrained to the released model.
        total: cosine with the sum of all releases.
        largest: largest cosine with one release (Andrew et al. 2024, §4).
        likelihood: log-likelihood ratio over all releases.
    """

    dimension: int
    final: NDArray[np.float64]
    total: NDArray[np.float64]
    largest: NDArray[np.float64]
    likelihood: NDArray[np.float64]


def score(
    canaries: Canaries,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    means: list[NDArray[np.float32]],
    mechanism: Mechanism,
) -> Scores:
    """Hold every canary against what was released.

    Along a direction that had no part, a release S of d numbers is N(0, ‖S‖²/d); a canary that was sampled
    adds C. It is sampled with probability q in each round, so a round's likelihood ratio is
    1 − q + q·exp((y − ½)/s²), with y and s in units of C.

    Args:
        canaries: directions and coins.
        before: the untrained weights.
        after: the released weights.
        means: noisy mean of each round, [d] each.
        mechanism: of every round.
    """
    moved = {name: (before[name] - after[name]).numpy() for name in before}
    releases = np.stack(means) * np.float32(mechanism.expected_cohort / mechanism.clip_norm)
    vectors = np.stack([*releases, releases.sum(axis=0), flattened(moved)])
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    dimension = vectors.shape[1]
    along = canaries.along(vectors)
    cosines = along / np.maximum(norms, np.finfo(np.float64).tiny)
    y, s, q = along[:, :-2], norms[:-2] / np.sqrt(dimension), mechanism.sampling_probability
    with np.errstate(divide="ignore"):  # log(1 − q) at q = 1
        ratios = np.logaddexp(np.log1p(-q), np.log(q) + (y - 0.5) / s**2)
    return Scores(
        dimension=dimension,
        final=cosines[:, -1],
        total=cosines[:, -2],
        largest=cosines[:, :-2].max(axis=1),
        likelihood=ratios.sum(axis=1),
    )


def _estimate(
    canaries: Canaries, cosines: NDArray[np.float64], delta: float, null_stddev: float | None
) -> Estimate:
    return estimate_epsilon(
        present=cosines[canaries.included],
        absent=cosines[~canaries.included],
        delta=delta,
        null_stddev=null_stddev,
        level=1 - 2 * _EACH,
    )


def _shown(game: Guesses) -> dict[str, int]:
    return {"made": game.made, "correct": game.correct}


def _findings(found: Mapping[str, Any], epsilon: float, delta: float) -> list[str]:
    """What speaks against the declared ε; nothing where it holds."""
    bounds = found["bounds"]
    findings = [
        f"so many right guesses have a chance of at most {bounds[name]:.2g} under {under}"
        for name, under in (
            ("epsilon_p_value", f"the declared ε = {epsilon:.3g} at δ = {delta:.2g}"),
            ("declared_p_value", "the releases that the ledger declares"),
        )
        if bounds[name] < _EACH
    ]
    for name in _NORMAL:
        estimate = found["estimates"][name]
        if estimate["low"] > epsilon:
            findings.append(
                f"the estimate from {name.replace('_', ' ')} is {estimate['epsilon']:.3g} "
                f"[{estimate['low']:.3g}, {estimate['high']:.3g}], above the declared {epsilon:.3g}"
            )
    return findings


def _write(out: Path, document: Mapping[str, Any]) -> dict[str, str]:
    canaries = document["canaries"]
    drawing = cosine_histogram(
        present=canaries["cosines_in"],
        absent=canaries["cosines_out"],
        null_stddev=canaries["null_stddev"],
    )
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    out.mkdir(parents=True, exist_ok=True)
    contents = {
        "canaries.json": text.encode("utf-8", "backslashreplace"),
        "canaries.svg": standalone(drawing).encode(),
    }
    for name, content in contents.items():
        write_atomically(out / name, content)
    return {"results": str(out / "canaries.json"), "chart": str(out / "canaries.svg")}
