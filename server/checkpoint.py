"""The state of a federation between rounds, as one file that is whole or not there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..common.errors import DataError, RunFolderError
from ..common.files import write_atomically
from ..common.successors import Successors
from ..common.weights import hash_of_weights

_KEPT = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything a run needs to go on after a round.

    Attributes:
        round: last round that is done; 0 after the one-shot statistics.
        config_digest: of the configuration it belongs to.
        items: hash of the item table that the weights and the popularity are for.
        release: ledger number of the release that led here; it is committed late after a crash.
        weights: name → shared weights.
        average: name → sum of the weights of the rounds that are averaged.
        averaged: number of those rounds.
        moments: ``parameter/field`` → state of the server optimizer.
        popularity: float [1 + time scales, n_items], the noisy release.
        vectors: float32 [n_items, r], what the release of co-occurrence led to; None before it.
        successors: what else it led to.
        beyond_content: how much of it content doesn't tell.
        rounds: what was recorded of each round, JSON-ready.
    """

    round: int
    config_digest: str
    items: str
    release: int | None
    weights: dict[str, Tensor]
    popularity: Tensor
    vectors: Tensor | None = None
    successors: Successors | None = None
    beyond_content: float = 1.0
    average: dict[str, Tensor] = field(default_factory=dict)
    averaged: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    rounds: tuple[dict[str, Any], ...] = ()

    @property
    def led_to(self) -> str:
        """Hash of what the last release led to, as the ledger has it: weights, or a statistic."""
        if self.round:
            return hash_of_weights({name: tensor.numpy() for name, tensor in self.weights.items()})
        if self.vectors is None:
            return hash_of_weights({"popularity": self.popularity.numpy()})
        further = {} if self.successors is None else self.successors.arrays
        return hash_of_weights({"vectors": self.vectors.numpy(), **further})

    def save(self, folder: Path) -> None:
        """Write ``round-NNNNNN.safetensors`` into ``folder`` and drop all but the last few."""
        groups = {"weights": self.weights, "average": self.average, "moments": self.moments}
        tensors = {
            f"{group}/{name}": tensor.contiguous()
            for group, members in groups.items()
            for name, tensor in members.items()
        }
        tensors["popularity"] = self.popularity.contiguous()
        if self.vectors is not None:
            tensors["vectors"] = self.vectors.contiguous()
        if self.successors is not None:
            tensors["pairs"] = torch.from_numpy(self.successors.pairs)
            tensors["chances"] = torch.from_numpy(self.successors.chances)
        state = {
            "round": self.round,
            "config_digest": self.config_digest,
            "items": self.items,
            "release": self.release,
            "beyond_content": self.beyond_content,
            "averaged": self.averaged,
            "rounds": self.rounds,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"round-{self.round:06d}.safetensors"
        write_atomically(path, save(tensors, {"state": json.dumps(state)}))
        for old in sorted(folder.glob("round-*.safetensors"))[:-_KEPT]:
            old.unlink()

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "moments": {}}
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                popularity = file.get_tensor("popularity")
                names = file.keys()
                vectors = file.get_tensor("vectors") if "vectors" in names else None
                successors = None
                if "pairs" in names:
                    pairs, chances = file.get_tensor("pairs"), file.get_tensor("chances")
                    successors = Successors(pairs.numpy(), chances.numpy())
                    successors.check(popularity.shape[-1])
                for key in names:
                    group, _, name = key.partition("/")
                    if name:
                        groups[group][name] = file.get_tensor(key)
            return cls(
                round=int(state["round"]),
                config_digest=state["config_digest"],
                items=state["items"],
                release=state["release"],
                beyond_content=float(state["beyond_content"]),
                averaged=int(state["averaged"]),
                rounds=tuple(state["rounds"]),
                popularity=popularity,
                vectors=vectors,
                successors=successors,
                **groups,
            )
        except (OSError, SafetensorError, DataError, KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"{path}: not a checkpoint ({error}); remove it") from error

    @classmethod
    def latest(cls, folder: Path, *, config_digest: str, items: str) -> Checkpoint | None:
        """The newest checkpoint of ``folder``, if any.

        Raises:
            RunFolderError: it is damaged or belongs to another configuration or catalogue.
        """
        paths = sorted(folder.glob("round-*.safetensors"))
        if not paths:
            return None
        checkpoint = cls.load(paths[-1])
        if checkpoint.config_digest != config_digest:
            raise RunFolderError(
                f"{paths[-1]}: belongs to another configuration; go on with the one it was begun with, "
                "or begin in another folder"
            )
        if checkpoint.items != items:
            raise RunFolderError(
                f"{paths[-1]}: the items have changed since; go on with those it was begun with, or begin "
                "in another folder"
            )
        return checkpoint


def optimizer_moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """State of a server optimizer as ``parameter/field`` → tensor (a copy)."""
    return {
        f"{name}/{key}": torch.as_tensor(value).clone()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


def restore_moments(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    moments: dict[str, Tensor],
) -> None:
    """Put back what :func:`optimizer_moments` took."""
    for key, value in moments.items():
        name, _, state_key = key.rpartition("/")
        optimizer.state[parameters[name]][state_key] = value.clone()
