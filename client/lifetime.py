"""What a device allows itself over its lifetime: a ledger and a limit of its own.

A device takes part in runs of many models, and each time something of its data gets out. It can't check
the server's coins, so it counts every release at full cost, as the server promised it: clip norm,
noise, no amplification. The same ledger serves before and after a restart, whatever the server
says; docs/ledger.md, "The ledger of a device", has its format.

The order that survives a crash at any point:

1. :meth:`LifetimeBudget.charge`. A device that is killed hereafter has paid, and nothing got out.
2. Make the reply, and store it where it survives.
3. :meth:`LifetimeBudget.commit`, then send the reply, as often as it is asked for.

Asked again for the same release, ``charge`` takes nothing more. Where its answer is committed
(``Charge.answered``) the stored reply is the one to send; a second draw would be a second release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..common import accounting
from ..common.errors import BudgetError, ConfigError, LedgerError, MessageError
from ..common.ledger import Ledger
from ..common.ledger_entries import Open, Reserve, Unit, events_of, read_chain
from ..common.mechanism import Mechanism, Randomness
from ..common.messages import Binding
from ..common.signing import SigningKey


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a device's ledger is opened for.

    Attributes:
        population: name of the users, as in the server's ledger.
        target_epsilon: ε that the owner allows over the device's lifetime; None: all is recorded and
            nothing refused.
        delta: δ at which ε is stated.
        randomness: where the device's own noise comes from.
        code_version: of the program.
        config_digest: hash of the policy or configuration that the ledger is opened under.
        unit: whose contribution a release hides.
        population_size: how many units there are at most: 1 device, or its public bound on events.
    """

    population: str
    target_epsilon: float | None
    delta: float
    randomness: Randomness
    code_version: str
    config_digest: str
    unit: Unit = "user"
    population_size: int = 1


@dataclass(frozen=True)
class Charge:
    """One answer, paid for.

    Attributes:
        releases: numbers in the device's ledger, one for each time noise is drawn.
        answered: the answer was made before: send the stored one, and make no other.
        repeated: it was charged before, in part or whole. Whoever was killed after that may have made an
            answer; where nothing else tells that it didn't get out, make no other.
    """

    releases: tuple[int, ...]
    answered: bool
    repeated: bool


class LifetimeBudget:
    """A device's ledger open for writing; one process at a time holds it.

    Make one with :meth:`open`; it is a context manager that closes the ledger.
    """

    def __init__(self, ledger: Ledger, *, path: Path, limit: float | None) -> None:
        self._ledger = ledger
        self._path = path
        self._limit = limit

    @classmethod
    def open(cls, path: Path, *, terms: Terms, anchor: Path | None = None) -> Self:
        """Go on with the ledger in ``path``, or start it, with its key beside it (``….pem``).

        Args:
            path: the file, named ``….jsonl``.
            terms: of the ledger. A limit below the one it was started with holds from now on.
            anchor: second place for the head; None: nowhere.

        Raises:
            LedgerError: ledger, key or anchor can't be read or written, or another process has it.
            ConfigError: the ledger was started on other terms, or for a lower limit.
        """
        key_file = path.with_suffix(".pem")
        if not _begun(path):
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            # A device may have been killed after it made its key.
            known = key_file.exists()
            ledger = Ledger.create(
                path,
                signing_key=SigningKey.load(key_file) if known else SigningKey.create(key_file),
                anchor=anchor,
                earlier=(),
                **vars(terms),
            )
            return cls(ledger, path=path, limit=terms.target_epsilon)
        ledger = Ledger.open(
            path,
            signing_key=SigningKey.load(key_file),
            anchor=anchor,
            code_version=terms.code_version,
        )
        try:
            limit = _limit(path, ledger.opening, terms)
        except ConfigError:
            ledger.close()
            raise
        return cls(ledger, path=path, limit=limit)

    def charge(
        self, *, task: str, binding: Binding, mechanism: Mechanism, times: int = 1
    ) -> Charge:
        """Pay for an answer, durably, before it is made.

        Args:
            task: what is asked for: ``training``, ``statistics/popularity``.
            binding: which release of which run, as the server's message has it.
            mechanism: as promised; see :func:`promised`.
            times: releases that the answer consists of.

        Returns:
            The charge, perhaps one that was paid before.

        Raises:
            BudgetError: the lifetime ε would be exceeded; nothing is charged.
            MessageError: this release was paid for as one of another mechanism.
            LedgerError: the ledger is closed or can't be written.
        """
        name = _name(task, binding)
        known = self._known(task, binding, mechanism, times)
        pending = {entry.sequence for entry in self._ledger.pending()}
        if any(entry.sequence not in pending for entry in known):
            return Charge(tuple(entry.sequence for entry in known), answered=True, repeated=True)
        self.check(task=task, binding=binding, mechanism=mechanism, times=times)
        releases = [entry.sequence for entry in known]
        for _ in range(times - len(known)):
            releases.append(self._ledger.reserve(mechanism=mechanism, **name))
        return Charge(tuple(releases), answered=False, repeated=bool(known))

    def check(self, *, task: str, binding: Binding, mechanism: Mechanism, times: int = 1) -> None:
        """Refuse what :meth:`charge` would refuse, and charge nothing.

        For who must pay in two ledgers, or in none. Arguments and errors as :meth:`charge`.
        """
        missing = times - len(self._known(task, binding, mechanism, times))
        if self._limit is None or not missing:
            return
        opening, events = self._ledger.opening, self._ledger.events()
        events[mechanism.event()] += missing
        delta, adjacency = opening.delta, opening.adjacency
        if not accounting.fits(
            events, delta=delta, target_epsilon=self._limit, adjacency=adjacency
        ):
            reached = accounting.epsilon(events, delta=delta, coarse=True, adjacency=adjacency)
            raise BudgetError(
                f"{task} of run '{binding.run}' would bring this device's {opening.unit}-level ε to "
                f"{reached:.6g} over its lifetime, above the {self._limit:.6g} that {self._path.name} "
                "allows; take part no more, or ask for more noise",
                epsilon_reached=reached,
            )

    def commit(self, charge: Charge) -> None:
        """Record that the answer was made, once it can be sent again.

        Raises:
            LedgerError: it was committed before, or the ledger is closed or can't be written.
        """
        # How many events were in a batch would tell how many there are; that isn't written down.
        counted = 1 if self._ledger.opening.unit == "user" else 0
        for release in charge.releases:
            self._ledger.commit(release, cohort_size=counted, replies_counted=counted, rejected={})

    def epsilon_spent(self) -> float:
        """ε of all that was charged, at the ledger's δ."""
        return self._ledger.epsilon_spent()

    def close(self) -> None:
        """Close the ledger and let other processes in; closing twice is harmless."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _known(
        self, task: str, binding: Binding, mechanism: Mechanism, times: int
    ) -> list[Reserve]:
        """What was charged for this very answer before.

        Raises:
            MessageError: it was charged as another mechanism.
        """
        name = _name(task, binding)
        known = [
            entry
            for entry in self._ledger.entries
            if isinstance(entry, Reserve)
            and all(getattr(entry, key) == value for key, value in name.items())
        ]
        if any(entry.mechanism != mechanism for entry in known) or len(known) > times:
            raise MessageError(
                f"{task} of run '{binding.run}': release {binding.release} was answered as another "
                "mechanism; the server must not change what it promised"
            )
        return known


def read_spent(path: Path, *, terms: Terms) -> tuple[float, int]:
    """ε of all that was charged to the ledger in ``path``, and for how many releases; changes nothing.

    Raises:
        LedgerError: the ledger can't be read or doesn't hold together.
        ConfigError: it was started on other terms, or for a lower limit.
    """
    if not _begun(path):
        return 0.0, 0
    chain = read_chain(path)
    opening = chain.opening
    _limit(path, opening, terms)
    events = events_of(chain.entries)
    spent = accounting.epsilon(events, delta=opening.delta, adjacency=opening.adjacency)
    return spent, sum(isinstance(entry, Reserve) for entry in chain.entries)


BudgetOf = Callable[[int], LifetimeBudget | None]
"""Number of a device → its budget, to be closed after use; None where it keeps none."""


def no_budget(device: int) -> None:  # it is a BudgetOf
    """The budget of devices that keep none."""


def promised(*, clip_norm: float, noise_multiplier: float) -> Mechanism:
    """The release a server promises, as a device may count it: one user, taking part for sure."""
    return Mechanism(
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        sampling_probability=1.0,
        population_size=1,
        sampler="self-selected",
    )


def _name(task: str, binding: Binding) -> dict[str, Any]:
    """By what an answer is told from others in the ledger."""
    return {
        "run": binding.run,
        "task": task,
        "round": binding.round or None,
        "model_before": binding.model or None,
        "answers": binding.release,
    }


def _begun(path: Path) -> bool:
    """Whether there is a first entry; without one nothing can have been charged."""
    try:
        with path.open("rb") as file:
            return file.readline().endswith(b"\n")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LedgerError(f"{path}: can't read the ledger ({error.strerror})") from error


def _limit(path: Path, opening: Open, terms: Terms) -> float | None:
    for key in ("unit", "population", "population_size", "delta"):
        was, now = getattr(opening, key), getattr(terms, key)
        if was != now:
            raise ConfigError(
                f"{path}: was started with {key} {was!r}, not {now!r}; it is kept for life: put the "
                "setting back, or keep another ledger for another population"
            )
    recorded, limit = opening.target_epsilon, terms.target_epsilon
    if recorded is not None and (limit is None or limit > recorded):
        raise ConfigError(
            f"{path}: allows a lifetime ε of {recorded:g}, which can be lowered but not raised; set "
            f"{recorded:g} or less"
        )
    return limit
