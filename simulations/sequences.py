"""A built-in log whose next item follows from the order of the last ones, with nothing but ids.

Nothing can be learned from texts here, and little from who took what: the same items in another
order lead elsewhere.

- *chains*: in every genre items follow one another, each with a few successors of its own;
- *turns*: after two items of one genre the chain goes on; after a change of genre, a step may lead into
  the genre that the new one leads to. So the last item alone doesn't tell what comes next;
- *people*: a few home genres, one of which is given up for another at some time; what is popular.

Users of a kind take their items one at a time, in sessions. Ids are shuffled and say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..common.histories import Histories
from .dataset import InteractionLog
from .encoding import assemble

_START = 1_672_617_600  # 2023-01-02 00:00 UTC
_DAYS = 365
_MINUTE, _DAY = 60, 86_400
_ITEMS_PER_GENRE = 50
_SUCCESSORS = 4
_HOMES = 3
_MEDIAN_EVENTS, _MOST_EVENTS = 60, 200
_SESSION = 6.0  # events, mean
_BLOCK = 4_096  # users made at a time: memory doesn't grow with the population
_CHAIN, _TURN = 0.55, 0.2  # chances that a step follows the last item, or turns away from its genre
_TRIES = 4  # to find an item that the user hasn't taken yet

_Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _World:
    """What no user decides.

    Attributes:
        genre: [items], ascending.
        bounds: [genres + 1]; items of genre g are ``bounds[g]:bounds[g + 1]``.
        successors: [items, s], within the genre.
        leads_to: [genres], where a turn leads.
        entries: [items], the item that a turn from each item leads to.
    """

    genre: _Ints
    bounds: _Ints
    successors: _Ints
    leads_to: _Ints
    entries: _Ints


def sequences(users: int, items: int, seed: int) -> InteractionLog:
    """A log of some 10–200 events a user; the same numbers and seed give the same log.

    Args:
        users: number of users, at least 1.
        items: number of items, at least 2.
        seed: of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    world = _make_world(items, rng)
    index = rng.permutation(items)  # position in genre order → public item index
    blocks = []
    for first in range(0, users, _BLOCK):
        count = min(_BLOCK, users - first)
        blocks.append(_make_block(world, count, np.random.default_rng([seed, first])))
    lengths, taken, times, sessions = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    histories = Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=index[taken].astype(np.int32),
        times=times,
        sessions=sessions.astype(np.int32),
        weights=np.ones(len(taken), dtype=np.float32),
        types=np.zeros(len(taken), dtype=np.int16),
    )
    return assemble(
        histories,
        pl.DataFrame({"item_id": _ids("item", items)}),
        pl.DataFrame({"user_id": _ids("user", users)}),
        ("view",),
        source="sequences",
        preset="sequences",
        rows_per_file=(("sequences", histories.n_events),),
        rules=(),
    )


def _ids(kind: str, count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{kind}-{number:0{width}d}" for number in range(count)]


def _make_world(items: int, rng: np.random.Generator) -> _World:
    genres = max(1, items // _ITEMS_PER_GENRE)
    genre = np.sort(np.arange(items) % genres)
    bounds = np.searchsorted(genre, np.arange(genres + 1))
    sizes = np.diff(bounds)
    # A shifted cycle: a genre doesn't lead to itself, and an item isn't its own successor.
    cycle = rng.permutation(genres)
    leads_to = np.empty(genres, dtype=np.int64)
    leads_to[cycle] = np.roll(cycle, -1)
    steps = 1 + rng.integers(np.maximum(sizes[genre] - 1, 1)[:, None], size=(items, _SUCCESSORS))
    place = np.arange(items) - bounds[genre]
    successors = bounds[genre][:, None] + (place[:, None] + steps) % sizes[genre][:, None]
    there = leads_to[genre]
    return _World(
        genre=genre,
        bounds=bounds,
        successors=successors,
        leads_to=leads_to,
        entries=bounds[there] + rng.integers(sizes[there]),
    )


def _make_block(
    world: _World, users: int, rng: np.random.Generator
) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """Events of each user, and their items, times and sessions, user by user."""
    lengths = np.exp(rng.normal(np.log(_MEDIAN_EVENTS), 0.6, size=users))
    lengths = np.clip(lengths.astype(np.int64), 10, _MOST_EVENTS)
    steps = int(lengths.max())
    taken = _walk(world, lengths, rng)
    opens = rng.random((users, steps)) < 1 / _SESSION
    opens[:, 0] = True
    # Sessions are spread over what is left of the year from the day a user joined.
    pause = np.where(opens, rng.exponential(1.0, size=opens.shape), 0.0)
    real = np.arange(steps) < lengths[:, None]
    whole = (pause * real).sum(axis=1, keepdims=True)
    joined = rng.uniform(0, 0.7, size=(users, 1)) * _DAYS
    days = joined + np.cumsum(pause, axis=1) / whole * (_DAYS - 1 - joined)
    within = np.cumsum(rng.integers(1, 6, size=opens.shape) * _MINUTE, axis=1)
    times = (_START + days * _DAY).astype(np.int64) + within
    sessions = np.cumsum(opens, axis=1) - 1
    return lengths, taken[real], times[real], sessions[real]


def _walk(world: _World, lengths: _Ints, rng: np.random.Generator) -> _Ints:
    """What everybody takes, [users, steps], step by step."""
    users, steps, genres = len(lengths), int(lengths.max()), len(world.leads_to)
    everybody = np.arange(users)
    homes = rng.integers(genres, size=(users, _HOMES))
    other = rng.integers(genres, size=users)
    turning = (rng.uniform(0.3, 0.9, size=users) * lengths).astype(np.int64)
    seen = np.zeros((users, len(world.genre)), dtype=np.bool_)
    taken = np.empty((users, steps), dtype=np.int64)
    for step in range(steps):
        homes[turning == step, 0] = other[turning == step]
        item = _at_home(world, homes, rng)
        if step > 1:
            last, before = taken[:, step - 1], taken[:, step - 2]
            stayed = world.genre[last] == world.genre[before]
            dice = rng.random(users)
            # Two of one genre: on along the chain, the first successors most. After a change: a turn.
            follows = np.where(stayed, dice < _CHAIN, dice < _CHAIN / 2)
            turns = ~stayed & ~follows & (dice < _CHAIN / 2 + 2 * _TURN)
            rank = np.minimum(rng.geometric(0.5, size=users), _SUCCESSORS) - 1
            item = np.where(follows, world.successors[last, rank], item)
            item = np.where(turns, world.entries[last], item)
        for _ in range(_TRIES):
            again = seen[everybody, item]
            if not again.any():
                break
            item = np.where(again, _at_home(world, homes, rng), item)
        taken[:, step] = item
        seen[everybody, item] = True
    return taken


def _at_home(world: _World, homes: _Ints, rng: np.random.Generator) -> _Ints:
    """An item of one of each user's home genres; the first ones of a genre are taken most."""
    users = len(homes)
    genre = homes[np.arange(users), rng.integers(homes.shape[1], size=users)]
    sizes = world.bounds[genre + 1] - world.bounds[genre]
    place = (sizes * rng.random(users) ** 2.5).astype(np.int64)
    return np.asarray(world.bounds[genre] + np.minimum(place, sizes - 1))
