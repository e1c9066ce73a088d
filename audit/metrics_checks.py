"""Whether ``metrics.json`` of a run tells the ledger's figures, and those that the audit works out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import FedprofileError
from ..common.ledger_entries import Chain, Commit, Reserve, Stop
from ..common.mechanism import Mechanism
from .bounded import Bounded
from .findings import Finding, judge
from .privacy_checks import Cost, releases_of
from .release_checks import Fault

SAME = 1e-6
"""Relative, between two computations of one ε."""
_ALONG = 1e-3
"""The same of ε on the way, where a run and its audit may compose in another order on a coarse grid."""


def check_metrics(path: Path, chain: Chain, cost: Cost, *, chosen: bool | None) -> Finding:
    """Whether the metrics tell what the ledger has; measures of quality are none of its business.

    Args:
        path: the file.
        chain: the ledger.
        cost: what its releases come to.
        chosen: whether the configuration has validation choose a round; None: it isn't known.
    """
    if not path.is_file():
        return Finding("metrics", "not run", "metrics.json is missing: the run isn't finished")
    try:
        faults = list(_faults(json.loads(path.read_bytes()), chain, cost, chosen))
    except (ValueError, KeyError, TypeError) as error:
        return Finding("metrics", "fails", f"{path.name} isn't the metrics of a run ({error!r})")
    return judge("metrics", faults, otherwise=f"{path.name} tells the ledger's ε and releases")


def _faults(
    metrics: Mapping[str, Any], chain: Chain, cost: Cost, chosen: bool | None
) -> Iterator[Fault]:
    told, opening, worked_out = metrics["privacy"], chain.opening, cost.to_dict()
    made = [e for e in chain.entries if isinstance(e, Reserve)]
    declared = worked_out["epsilon_pld"]
    if not _same(told["epsilon"], declared):
        yield None, f"metrics.json tells ε = {told['epsilon']}, the ledger comes to {declared}"
    for key in ("epsilon_rdp", "epsilon_prv"):
        # An accountant may be missing here or there; one that spoke in both places says the same.
        if None not in (told[key], worked_out[key]) and not _same(told[key], worked_out[key]):
            yield None, f"metrics.json tells {key} = {told[key]}, it comes to {worked_out[key]}"
    for key in ("delta", "population_size", "unit", "adjacency", "target_epsilon", "randomness"):
        if told[key] != getattr(opening, key):
            yield None, f"metrics.json tells another {key} than the ledger"
    if {e.mechanism.sampler for e in made} - {told["sampler"]}:
        yield None, "metrics.json tells another sampler than the ledger"
    if made and told["enabled"] != all(e.mechanism.private for e in made):
        yield None, "metrics.json and the ledger disagree on whether there was noise"
    yield from _release_faults(told["releases"], chain, made, cost)
    yield from _end_faults(metrics["run"], chain, made, chosen)
    after = {(r["round"], r["cohort"]): r["epsilon_after"] for r in told["releases"]}
    for point in metrics["curve"]:
        at = point["round"], point["sampled"]
        if at not in after or point["epsilon"] != after[at]:
            yield None, f"metrics.json tells another ε or cohort in its curve, round {at[0]}"


def _end_faults(
    run: Mapping[str, Any], chain: Chain, made: Sequence[Reserve], chosen: bool | None
) -> Iterator[Fault]:
    """Whether they tell after which round and why the run ended, and of which round its model is."""
    rounds = [e.round for e in made if e.round and e.sequence not in chain.pending]
    done, best, last = run["rounds_done"], run["best_round"], chain.entries[-1]
    if done != max(rounds, default=0):
        last_round = max(rounds, default=0)
        yield None, f"metrics.json tells {done} rounds, the ledger has {last_round} committed"
    # A run ends its ledger before it writes its metrics; one without an end tells nothing of it.
    if isinstance(last, Stop):
        reason = None if last.reason == "completed" else last.reason
        if run["stopped"] != reason:
            line = last.sequence + 1
            yield line, "metrics.json tells another reason why the run ended than the ledger"
    if best is not None and (chosen is False or any(e.mechanism.private for e in made)):
        yield (
            None,
            "metrics.json tells of a best round, which validation chooses with training.patience and "
            "without privacy only",
        )
    elif chosen and best not in rounds:
        yield None, "metrics.json names no round of the ledger as the best"


def _release_faults(
    told: Sequence[Mapping[str, Any]], chain: Chain, made: Sequence[Reserve], cost: Cost
) -> Iterator[Fault]:
    commits = {e.release: e for e in chain.entries if isinstance(e, Commit)}
    if len(told) != len(made):
        yield None, f"metrics.json tells {len(told):,} releases, the ledger has {len(made):,}"
    for release, entry in zip(told, made, strict=False):
        for key, value in _release(entry, commits.get(entry.sequence)).items():
            if release[key] != value:
                line = entry.sequence + 1
                yield line, f"metrics.json tells another {key} of the release than the ledger"
    figures = _spent(chain, made, cost)
    for release, entry, figure in zip(told, made, figures, strict=False):
        if not _same(release["epsilon_after"], figure, within=_ALONG):
            what = f"metrics.json tells ε = {release['epsilon_after']} after the release, it was {figure}"
            yield entry.sequence + 1, what


def _release(entry: Reserve, commit: Commit | None) -> dict[str, Any]:
    described = entry.mechanism.describe()
    return {
        "task": entry.task,
        "round": entry.round,
        **{key: described[key] for key in ("noise_multiplier", "clip_norm")},
        "sampling_probability": described["sampling_probability"],
        "cohort": commit.cohort_size if commit else None,
        "replies": commit.replies_counted if commit else None,
        "rejected": dict(commit.rejected) if commit else {},
    }


def _spent(chain: Chain, made: Sequence[Reserve], cost: Cost) -> list[float | None]:
    """ε after each release; nothing where it isn't known after all of them."""
    if cost.pld is None:
        return []
    mechanisms = [entry.mechanism for entry in made]
    before = releases_of(chain) - Counter(mechanisms)
    try:
        with Bounded(_along) as ask:
            figures = ask(before, mechanisms, cost.delta, cost.pld)
    except FedprofileError:  # numbers that nobody would choose
        return []
    return [figure if math.isfinite(figure) else None for figure in figures]


def _along(
    before: Mapping[Mechanism, int], made: Sequence[Mechanism], delta: float, total: float
) -> list[float]:
    from ..common.accounting import epsilon_along

    earlier: Counter[Any] = Counter()
    for mechanism, count in before.items():
        earlier[mechanism.event()] += count
    stretches = [earlier, *(Counter([mechanism.event()]) for mechanism in made)]
    return epsilon_along(stretches, delta=delta, total=total)[1:]


def _same(told: float | None, declared: float | None, *, within: float = SAME) -> bool:
    """Whether two figures are one; a number that is none is neither."""
    if told is None or declared is None:
        return told is declared
    return abs(told - declared) <= within * max(1.0, declared)
