"""Whether the folder of a server tells the same story as its ledger: settings, weights, releases, keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from ..common.errors import ConfigError, DataError, LedgerError, MessageError
from ..common.ledger_entries import Chain, Commit, Reserve
from ..common.releases import Manifest
from ..common.server_bundle import read_facts
from ..common.server_config import load_server_config
from ..common.signing import SigningKey
from ..common.weights import hash_of_weights
from .checkpoints import Checkpoint
from .findings import Finding, judge
from .ledgers import SERVER
from .metrics_checks import SAME
from .privacy_checks import Cost
from .release_checks import Fault
from .run_checks import check_checkpoint


def check_server(folder: Path, chain: Chain, cost: Cost) -> list[Finding]:
    """Findings on settings, the last checkpoint, released models and keys of a server's folder."""
    return [
        _check_config(folder / SERVER, chain),
        check_checkpoint(folder / "checkpoints", chain),
        _check_releases(folder, chain, cost),
        _check_keys(folder, chain),
    ]


def _check_config(path: Path, chain: Chain) -> Finding:
    opening = chain.opening
    try:
        config = load_server_config(path)
    except ConfigError as error:
        return Finding("configuration", "fails", str(error))
    told = (config.run().digest(), config.federation.population_size, config.delta)
    if told != (opening.config_digest, opening.population_size, opening.delta):
        what = f"{path.name} isn't what the ledger was opened for"
        return Finding("configuration", "fails", what, 1)
    return Finding("configuration", "holds", f"{path.name} is what the ledger was opened for")


def _check_keys(folder: Path, chain: Chain) -> Finding:
    """Whether devices are given the key that signed, and the folder has its private half."""
    own = chain.opening.public_key
    bundle, private = folder / "bundle.zip", folder / "signing.key"
    found = {}
    try:
        if bundle.is_file():
            found[bundle.name] = read_facts(bundle).signing_key
        if private.is_file():
            found[private.name] = SigningKey.load(private).public_key
    except (ConfigError, LedgerError) as error:
        return Finding("server key", "fails", str(error))
    if not found:
        return Finding("server key", "not run", f"neither {bundle.name} nor {private.name} is here")
    return judge(
        "server key",
        (
            (None, f"{n} has {key}, the ledger is signed by {own}")
            for n, key in found.items()
            if key != own
        ),
        otherwise=f"{' and '.join(found)} have the key that the ledger is signed by",
    )


def _check_releases(folder: Path, chain: Chain, cost: Cost) -> Finding:
    # A folder without a manifest was cut short by a crash; nobody was handed anything from it.
    paths = sorted((folder / "releases").glob("[0-9]*/manifest.json"))
    if not paths:
        return Finding("releases", "not run", "no model was released yet")
    return judge(
        "releases",
        _release_faults(paths, chain, cost, _averaged(folder / "checkpoints")),
        otherwise=f"{len(paths):,} signed manifests, each of weights that a committed release led to",
    )


def _release_faults(
    paths: list[Path], chain: Chain, cost: Cost, averaged: tuple[int, str] | None
) -> Iterator[Fault]:
    reserved = {e.sequence: e for e in chain.entries if isinstance(e, Reserve)}
    led_to = _models(chain, reserved)
    if averaged is not None:
        led_to.setdefault(averaged[0], set()).add(averaged[1])
    earlier: list[Manifest] = []
    for path in paths:
        name = f"release {path.parent.name}"
        try:
            manifest = Manifest.read(path.read_text("utf-8"), public_key=chain.opening.public_key)
        except (OSError, ValueError, MessageError) as error:
            yield None, f"{name}: {error}"
            continue
        line = manifest.release + 1
        if manifest.release not in reserved:
            yield (
                None,
                f"{name} says it is release {manifest.release}, which the ledger doesn't have",
            )
        elif manifest.federation not in (chain.opening.population, reserved[manifest.release].run):
            yield line, f"{name} is of federation '{manifest.federation}'"
        if manifest.weights not in led_to.get(manifest.round, set()):
            yield line, f"{name}: no committed release of round {manifest.round} led to its weights"
        if manifest.parent is not None and manifest.parent not in {m.model for m in earlier}:
            yield line, f"{name} comes from a model whose manifest isn't here"
        if earlier and (earlier[-1].release, earlier[-1].epsilon or 0.0) > (
            manifest.release,
            manifest.epsilon or 0.0,
        ):
            yield line, f"{name} says that less was released or spent than the one before"
        yield from ((line, f"{name}: {fault}") for fault in _content_faults(path.parent, manifest))
        earlier.append(manifest)
    if earlier:
        yield from _last_figure(earlier[-1], reserved, cost)


def _models(chain: Chain, reserved: dict[int, Reserve]) -> dict[int, set[str]]:
    """Round → hashes of the weights that its committed releases led to; 0: where training started."""
    models: dict[int, set[str]] = {}
    for entry in chain.entries:
        if isinstance(entry, Commit) and entry.model_after is not None:
            made = reserved[entry.release]
            if made.round:
                models.setdefault(made.round, set()).add(entry.model_after)
        elif isinstance(entry, Reserve) and entry.round == 1 and entry.model_before is not None:
            models.setdefault(0, set()).add(entry.model_before)
    return models


def _averaged(folder: Path) -> tuple[int, str] | None:
    """Round of the last checkpoint, and the hash of the average it holds, which ends a federation."""
    try:
        last = Checkpoint.last(folder)
    except DataError:
        return None  # the check of the checkpoint says so
    if last is None or not last.averaged:
        return None
    return last.round, hash_of_weights(last.average)


def _content_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the files of a release; those of old ones are deleted."""
    model, statistics = folder / "model.safetensors", folder / "statistics.f32"
    if model.is_file():
        content = model.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.model:
            yield f"{model.name} isn't the file that was signed"
        else:
            try:
                held = hash_of_weights(load(content))
            except SafetensorError as error:
                yield f"{model.name} isn't a model ({error})"
            else:
                if held != manifest.weights:
                    yield f"{model.name} holds other weights than its manifest says"
    if statistics.is_file():
        found = hashlib.sha256(statistics.read_bytes()).hexdigest()
        if found != manifest.statistics:
            yield f"{statistics.name} isn't the file that was signed"


def _last_figure(last: Manifest, reserved: dict[int, Reserve], cost: Cost) -> Iterator[Fault]:
    """ε of the newest manifest, where nothing was reserved since: that of the ledger."""
    declared = cost.to_dict()["epsilon_pld"]
    if last.release != max(reserved, default=None) or declared is None:
        return
    if last.epsilon is None or not abs(last.epsilon - declared) <= SAME * max(1.0, declared):
        told = "none" if last.epsilon is None else f"{last.epsilon:.6g}"
        yield (
            last.release + 1,
            f"the last release tells ε = {told}, the ledger comes to {declared:.6g}",
        )
