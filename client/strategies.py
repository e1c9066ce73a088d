"""Ways to make a list from a single part of the score; all of it together is :mod:`.scoring`.

    content        ⟨U₀, v⟩, where U₀ is the untrained profile vector, over the columns of public content
    collaborative  what goes with what is held, mixed with popularity (:mod:`.succession`)
    sequential     what follows on the last events, likewise
    neural         ⟨U, v⟩ of the encoder's profile vector, without popularity

They are for whoever wants to see, or to show, what one part says. ``fedprofile strategies`` measures the
same lists. All of it is worked out on the device and costs no ε.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConfigError, DeviceError
from ..common.items import ItemTable
from .nearest import log_popularity
from .profile import Profile, interest_vectors
from .reasons import Reasons, why_alike, why_next
from .serving import PRIOR_BLOCK
from .succession import mixed, next_chances


class Strategy(ABC):
    """A part of the score that ranks alone.

    Attributes:
        name: as owners and applications ask for it.
    """

    name: ClassVar[str]

    def scores(self, profile: Profile, public: ItemTable, served: ItemTable) -> NDArray[np.float32]:
        """What this part says of every item, float32 [n_items].

        Args:
            profile: the user.
            public: the table that the profile was built with.
            served: the table to rank with.

        Raises:
            DeviceError: the model has nothing for this strategy.
        """
        if lack := self.lack(public, served):
            raise DeviceError(
                f"strategy {self.name}: {lack}; ask for {' or '.join(available(public, served))}"
            )
        return self._scores(profile, public, served)

    @abstractmethod
    def lack(self, public: ItemTable, served: ItemTable) -> str:
        """What the model doesn't tell that this needs; empty where there is all."""

    @abstractmethod
    def why(self, profile: Profile, item: int, public: ItemTable, served: ItemTable) -> Reasons:
        """What in the profile speaks for an item here; nothing that this score doesn't count."""

    @abstractmethod
    def _scores(
        self, profile: Profile, public: ItemTable, served: ItemTable
    ) -> NDArray[np.float32]: ...


class Content(Strategy):
    """What is like the decayed interests, by public content alone."""

    name = "content"

    def lack(self, public: ItemTable, served: ItemTable) -> str:
        """See :meth:`Strategy.lack`."""
        return "" if public.has_content else "the model knows items by nothing but their ids"

    def why(self, profile: Profile, item: int, public: ItemTable, served: ItemTable) -> Reasons:
        """See :meth:`Strategy.why`."""
        return why_alike(profile, public, item, columns=_content_columns(public))

    def _scores(
        self, profile: Profile, public: ItemTable, served: ItemTable
    ) -> NDArray[np.float32]:
        return content_scores(profile.sums, public)


class _Next(Strategy):
    """What was released of pairs, and popularity where that tells nothing; a model tells one kind of them.

    Attributes:
        whole: of whole histories, as :class:`ItemTable` has it.
        tells: what that says.
    """

    whole: ClassVar[bool]
    tells: ClassVar[str]

    def lack(self, public: ItemTable, served: ItemTable) -> str:
        """See :meth:`Strategy.lack`."""
        told = served.successors and served.whole == self.whole
        return "" if told else f"the model doesn't tell {self.tells}"

    def why(self, profile: Profile, item: int, public: ItemTable, served: ItemTable) -> Reasons:
        """See :meth:`Strategy.why`."""
        return why_next(profile, served, item)

    def _scores(
        self, profile: Profile, public: ItemTable, served: ItemTable
    ) -> NDArray[np.float32]:
        return mixed(log_popularity(served), next_chances(profile, served))


class Collaborative(_Next):
    """What goes with what is held, and popularity where nothing does."""

    name, whole, tells = "collaborative", True, "what goes with what"


class Sequential(_Next):
    """What follows on the last events, and popularity where nothing does."""

    name, whole, tells = "sequential", False, "what follows what"


class Neural(Strategy):
    """The encoder's profile vector without what a score pools and mixes with it."""

    name = "neural"

    def lack(self, public: ItemTable, served: ItemTable) -> str:
        """See :meth:`Strategy.lack`."""
        return ""

    def why(self, profile: Profile, item: int, public: ItemTable, served: ItemTable) -> Reasons:
        """See :meth:`Strategy.why`."""
        return why_alike(profile, public, item)

    def _scores(
        self, profile: Profile, public: ItemTable, served: ItemTable
    ) -> NDArray[np.float32]:
        vector = profile.vector.copy()
        vector[slice(*served.blocks.get(PRIOR_BLOCK, (0, 0)))] = 0
        scores: NDArray[np.float32] = served.vectors @ vector
        return scores


_ALONE: tuple[Strategy, ...] = (Content(), Collaborative(), Sequential(), Neural())
_TOGETHER = "hybrid"


def strategy_of(name: str) -> Strategy:
    """The one of this name; hybrid is none of them.

    Raises:
        ConfigError: there is none.
    """
    for one in _ALONE:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in _ALONE)
    raise ConfigError(f"strategy {name!r}: there is no such; give {names} or {_TOGETHER}")


def available(public: ItemTable, served: ItemTable) -> tuple[str, ...]:
    """Names of the strategies that a model has something for, hybrid among them."""
    alone = (one.name for one in _ALONE if not one.lack(public, served))
    return (*alone, _TOGETHER)


def content_scores(sums: NDArray[np.float32], public: ItemTable) -> NDArray[np.float32]:
    """⟨U₀, v⟩ over the columns of content, float32 [..., n_items].

    Args:
        sums: float32 [..., n_scales, k], interest sums of one user or of many.
        public: the table that they were made with.
    """
    columns = _content_columns(public)
    # Zeros elsewhere, and not columns picked out of a large table.
    vectors = np.zeros((*sums.shape[:-2], public.dimension), dtype=np.float32)
    vectors[..., columns] = interest_vectors(sums[..., columns])
    scores: NDArray[np.float32] = vectors @ public.vectors.T
    return scores


def _content_columns(public: ItemTable) -> NDArray[np.int64]:
    blocks = [np.arange(start, stop) for start, stop in public.content_blocks]
    return np.concatenate([np.zeros(0, dtype=np.int64), *blocks])
