"""Whether a run folder tells the same story as its ledger: figures, rounds, weights and items."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..common.config import load_config
from ..common.errors import MALFORMED, ConfigError, DataError
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.ledger_entries import Chain, Commit, Reserve
from ..common.weights import hash_of_weights
from .checkpoints import COOCCURRENCE, Checkpoint
from .findings import Finding, judge
from .metrics_checks import check_metrics
from .privacy_checks import Cost
from .release_checks import Fault


def check_run(folder: Path, chain: Chain, cost: Cost) -> list[Finding]:
    """Findings on configuration, metrics, the last checkpoint, and the model and items to rank with."""
    checkpoints, chosen = folder / "checkpoints", _chosen(folder / "config.toml")
    return [
        guarded("configuration", lambda: _check_config(folder / "config.toml", chain)),
        guarded(
            "metrics",
            lambda: check_metrics(folder / "metrics.json", chain, cost, chosen=chosen),
        ),
        guarded("checkpoint", lambda: check_checkpoint(checkpoints, chain)),
        guarded("model", lambda: _check_model(folder, checkpoints, chain, chosen=bool(chosen))),
        guarded("items", lambda: _check_items(folder / "items.safetensors", chain)),
    ]


def guarded(check: str, look: Callable[[], Finding]) -> Finding:
    """What ``look`` finds; what is nothing that a run writes fails the check, whatever reading it meets."""
    try:
        return look()
    except (MemoryError, *MALFORMED) as error:
        return Finding(check, "fails", f"isn't what a run writes ({type(error).__name__})")


def _check_config(path: Path, chain: Chain) -> Finding:
    if not path.is_file():
        return Finding("configuration", "not run", "config.toml is missing")
    try:
        digest = load_config(path).digest()
    except ConfigError as error:
        return Finding("configuration", "fails", str(error))
    if digest != chain.opening.config_digest:
        return Finding(
            "configuration", "fails", f"{path.name} isn't what the ledger was opened for", 1
        )
    return Finding("configuration", "holds", "is the one the ledger was opened for")


def check_checkpoint(folder: Path, chain: Chain) -> Finding:
    """Whether the last of the checkpoints in ``folder`` holds what the ledger's releases led to."""
    try:
        checkpoint = Checkpoint.last(folder)
    except DataError as error:
        return Finding("checkpoint", "fails", str(error))
    if checkpoint is None:
        return Finding("checkpoint", "not run", "there is none")
    what = f"its {len(checkpoint.rounds)} releases are in the ledger, "
    if not checkpoint.round:
        what += "none of them is a round: weights are not compared"
    elif _led_to(checkpoint, chain) is None:
        what += "the last isn't committed: its weights are not compared"
    else:
        what += "the last led to its weights"
    return judge("checkpoint", _checkpoint_faults(checkpoint, chain), otherwise=what)


def _checkpoint_faults(checkpoint: Checkpoint, chain: Chain) -> Iterator[Fault]:
    yield from _record_faults(checkpoint, chain)
    yield from _place_faults(checkpoint, chain)
    last = _last_statistics(chain)
    for task in sorted(checkpoint.statistics.keys() - last.keys()):
        pending = {made.task for made in chain.pending.values()}
        if task not in pending and any(
            array.any() for array in checkpoint.statistics[task].values()
        ):
            yield None, f"it holds {task}, and the ledger has no release of it"
    for task, kept in last.items():
        statistic = checkpoint.statistics.get(task)
        if kept.model_after is not None and (
            statistic is None or kept.model_after != hash_of_weights(statistic)
        ):
            yield kept.sequence + 1, f"{task} led to other numbers than those kept"
    commit = _led_to(checkpoint, chain)
    if commit is not None and commit.model_after != hash_of_weights(checkpoint.weights):
        line = commit.sequence + 1
        yield line, f"round {checkpoint.round} led to other weights than those kept"


def _place_faults(checkpoint: Checkpoint, chain: Chain) -> Iterator[Fault]:
    """Whether it was made after the last release: it is saved first, and then the release is confirmed."""
    committed = _committed(chain)
    last = max(committed, default=None)
    made = None
    if checkpoint.release is not None:
        made = committed.get(checkpoint.release) or chain.pending.get(checkpoint.release)
    if made is None or (last is not None and made.sequence < last):
        if last is not None:
            yield last + 1, "the checkpoint isn't of the last release that was made"
    elif (made.round or 0) != checkpoint.round:
        yield made.sequence + 1, f"the checkpoint says it is of round {checkpoint.round}"


def _record_faults(checkpoint: Checkpoint, chain: Chain) -> Iterator[Fault]:
    """Whether it tells of the releases that the ledger has, and of no others, each with its cohort."""
    commits = {e.release: e for e in chain.entries if isinstance(e, Commit)}
    kept = Counter(
        (made.round or 0, commits[release].cohort_size)
        for release, made in _committed(chain).items()
    )
    pending = None if checkpoint.release is None else chain.pending.get(checkpoint.release)
    told = Counter((record["round"], record["sampled"]) for record in checkpoint.rounds)
    for number, sampled in sorted((told - kept).elements()):
        if pending is not None and (pending.round or 0) == number:
            continue
        what = f"round {number}" if number else "a statistic"
        lines = [r + 1 for r, e in _committed(chain).items() if (e.round or 0) == number]
        if not lines:
            yield None, f"{what} was made, and the ledger has no release of it"
        else:
            yield (
                max(lines),
                f"{what} had a cohort of {sampled:,}, and the ledger has no such release",
            )
    for number, _ in sorted((kept - told).elements()):
        what = f"round {number}" if number else "a statistic"
        yield None, f"the ledger has a release of {what} that the checkpoint doesn't know of"


def _led_to(checkpoint: Checkpoint, chain: Chain) -> Commit | None:
    """The commit of the round that the checkpoint was made after; None where there is none."""
    if not checkpoint.round:
        return None
    found = (e for e in chain.entries if isinstance(e, Commit) and e.release == checkpoint.release)
    return next(found, None)


def _last_statistics(chain: Chain) -> dict[str, Commit]:
    """Task → the last commit of a statistic; a crash may have cost one before."""
    committed = _committed(chain)
    return {
        committed[e.release].task: e
        for e in chain.entries
        if isinstance(e, Commit) and not committed[e.release].round
    }


def _check_model(folder: Path, checkpoints: Path, chain: Chain, *, chosen: bool) -> Finding:
    """Whether the released weights are those that the last round led to, or the average that was kept.

    The ledger names the weights that each round led to and no average of them, so that can be held
    against the checkpoint only. Where validation has ``chosen`` the model, it is that of one round.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        return Finding("model", "not run", f"{path.name} is missing: the run isn't finished")
    try:
        held = hash_of_weights(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        return Finding("model", "fails", f"{path.name} isn't a model ({error})")
    rounds = {release: made.round for release, made in _committed(chain).items() if made.round}
    led_to = [
        (rounds[e.release], e.model_after)
        for e in chain.entries
        if isinstance(e, Commit) and e.release in rounds and e.model_after
    ]
    if chosen:
        return _check_chosen(held, folder / "metrics.json", led_to)
    try:
        kept = Checkpoint.last(checkpoints)
    except DataError as error:
        return Finding("model", "not run", str(error))
    models = [model for _, model in led_to]
    if models and held == models[-1]:
        return Finding("model", "holds", "has the weights that the last round led to")
    if kept is None:
        return Finding("model", "not run", "no checkpoint to hold the average of rounds against")
    if models and not kept.averaged:
        return Finding(
            "model", "fails", f"{path.name} has other weights than the last round led to"
        )
    if held != hash_of_weights(kept.average):
        return Finding("model", "fails", f"{path.name} has other weights than the run ended with")
    what = "its weights are those of the last checkpoint"
    if kept.averaged:
        what = f"its weights are the average of {kept.averaged} rounds in the last checkpoint"
    why = "names no average" if kept.round else "has no round"
    return Finding("model", "holds", f"{what}; not compared with the ledger, which {why}")


def _check_chosen(held: str, metrics: Path, led_to: Sequence[tuple[int, str]]) -> Finding:
    """Whether the released weights, of the hash ``held``, are those of the round that metrics name."""
    if not metrics.is_file():
        what = f"{metrics.name}, which names the round that validation chose, is missing"
        return Finding("model", "not run", what)
    try:
        best = json.loads(metrics.read_bytes())["run"]["best_round"]
    except (ValueError, KeyError, TypeError) as error:
        what = f"{metrics.name} isn't the metrics of a run ({error!r})"
        return Finding("model", "fails", what)
    # A round that was made again, from an older checkpoint, has led to two.
    models = [model for number, model in led_to if number == best]
    if not models:
        what = f"{metrics.name} names no round of the ledger as the best"
        return Finding("model", "fails", what)
    if held not in models:
        what = f"has other weights than round {best} led to, which {metrics.name} names as the best"
        return Finding("model", "fails", what)
    return Finding("model", "holds", f"has the weights that round {best} led to")


def _chosen(path: Path) -> bool | None:
    """Whether the configuration has validation choose among the models of the rounds."""
    try:
        return load_config(path).training.patience is not None
    except (ConfigError, *MALFORMED):
        return None  # the check of the configuration says so


def _tells(table: ItemTable) -> bool:
    """Whether it tells of anything that is taken together."""
    start, stop = table.blocks.get(COOCCURRENCE_BLOCK, (0, 0))
    return bool(table.successors) or bool(table.vectors[:, start:stop].any())


def _check_items(path: Path, chain: Chain) -> Finding:
    """Whether the items have the vectors that were released; the public ones have their own hash only."""
    if not path.is_file():
        return Finding("items", "not run", f"{path.name} is missing: the run isn't finished")
    try:
        table = ItemTable.load(path)
    except DataError as error:
        return Finding("items", "fails", str(error))
    own, released = "agree with the hash beside them", _last_statistics(chain).get(COOCCURRENCE)
    if released is None and _tells(table):
        what = f"{path.name} tells of co-occurrence, and the ledger has no release of it"
        return Finding("items", "fails", what)
    if released is None or released.model_after is None:
        what = f"{own}; not compared with the ledger, which names no vectors of items"
        return Finding("items", "holds", what)
    if not table.compares:
        what = f"{path.name} lacks what was released of co-occurrence"
        return Finding("items", "fails", what, released.sequence + 1)
    start, stop = table.blocks.get(COOCCURRENCE_BLOCK, (0, 0))
    told = {"vectors": table.vectors[:, start:stop]}
    if table.successors is not None:
        told |= table.successors.arrays
    if hash_of_weights(told) != released.model_after:
        what = f"{path.name} tells of co-occurrence what wasn't released"
        return Finding("items", "fails", what, released.sequence + 1)
    return Finding("items", "holds", f"{own}, and tell of co-occurrence what was released")


def _committed(chain: Chain) -> dict[int, Reserve]:
    """Number → release that was committed."""
    return {
        e.sequence: e
        for e in chain.entries
        if isinstance(e, Reserve) and e.sequence not in chain.pending
    }
