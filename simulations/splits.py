"""What trains, what validates, what tests: the split of a log into past and held-out future.

A global time cut is the primary protocol, because nothing learned can then have seen what it is
asked to predict. Leave-one-out stands beside it for comparison with papers.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ..common.config import EvaluationConfig
from ..common.errors import ConfigError
from ..common.histories import Histories


@dataclass(frozen=True, eq=False)
class Targets:
    """What ``m`` users took next, and what their devices knew when they were asked.

    Attributes:
        history: ``m`` devices; all events that each knows at prediction time, at least one.
        users: int64 [m], index of each user in the histories that were split, increasing.
        offsets: int64 [m + 1]; targets of row u are ``items[offsets[u]:offsets[u + 1]]``.
        items: int32 [targets], distinct items of each target session, increasing within a row.
        now: int64 [m], prediction time: start of the target session, seconds since 1970 UTC.
        cold_users: users with targets but without history; counted here, left out above.
    """

    history: Histories
    users: NDArray[np.int64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    now: NDArray[np.int64]
    cold_users: int

    @property
    def n_users(self) -> int:
        """Number of users with history and targets."""
        return len(self.users)

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64 [targets], the row that each target belongs to."""
        return np.repeat(np.arange(self.n_users, dtype=np.int64), np.diff(self.offsets))

    @property
    def repeated(self) -> float | None:
        """Share of the targets that their users had had before; None where there are no targets."""
        if not len(self.items):
            return None
        wanted = self.rows << 32 | self.items
        had = self.history.devices.astype(np.int64) << 32 | self.history.items
        return float(np.isin(wanted, had).mean())

    def chunk(self, start: int, stop: int) -> Targets:
        """Rows ``start:stop``, fewer where they run past the end."""
        start, stop, _ = slice(start, stop).indices(self.n_users)
        offsets = self.offsets[start : stop + 1]
        return Targets(
            history=self.history.take(np.arange(start, stop, dtype=np.int64)),
            users=self.users[start:stop],
            offsets=offsets - offsets[0],
            items=self.items[offsets[0] : offsets[-1]],
            now=self.now[start:stop],
            cold_users=0,
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Events to fit on, and the two sets of targets.

    Attributes:
        choosing: events that models are fitted on whose settings validation chooses; all devices of
            the log, some perhaps empty.
        train: events that what is tested may be fitted on: the same, or with ``evaluation.refit`` the
            validation part besides, so that what is tested is as fresh as what would be in use.
        validation: targets to choose settings by.
        test: targets to report on.
        train_time: first second that isn't trained on, None where users differ in it.
        validation_time: first second held out for validation, None where users differ in it.
        test_time: first second held out for the test, None where users differ in it.
    """

    choosing: Histories
    train: Histories
    validation: Targets
    test: Targets
    train_time: int | None
    validation_time: int | None
    test_time: int | None

    @property
    def refitted(self) -> bool:
        """Whether validation targets are trained on: then they tell nothing of what was trained."""
        return self.train is not self.choosing


def global_time_split(
    histories: Histories, validation_from: int, test_from: int, *, refit: bool = False
) -> Split:
    """Cut all users at the same two moments.

    Training events come before ``validation_from``, or with ``refit`` before ``test_from``. A user's
    targets are the items of their first session that *starts* in ``[validation_from, test_from)``, or
    at or after ``test_from``; their history ends where that period begins. A session that runs over a
    cut belongs to the earlier side, and what of it lies past the cut is in neither history nor targets.

    Args:
        histories: the cleaned log.
        validation_from: seconds since 1970 UTC.
        test_from: seconds since 1970 UTC, later than ``validation_from``.
        refit: train on the validation part, too.
    """
    choosing = histories.before(validation_from)
    return Split(
        choosing=choosing,
        train=histories.before(test_from) if refit else choosing,
        validation=_first_session(histories, validation_from, test_from),
        test=_first_session(histories, test_from, None),
        train_time=test_from if refit else validation_from,
        validation_time=validation_from,
        test_time=test_from,
    )


def quantile_times(
    histories: Histories, validation_quantile: float, test_quantile: float
) -> tuple[int, int]:
    """The two moments before which the given shares of all events lie (seconds since 1970 UTC)."""
    times = np.sort(histories.times)
    validation, test = (
        int(times[int(q * len(times))]) for q in (validation_quantile, test_quantile)
    )
    return validation, test


def leave_one_out(
    histories: Histories, members: NDArray[np.bool_] | None = None, *, refit: bool = False
) -> Split:
    """Hold out each user's last event for the test, and the one before it for validation.

    What this lets in: users end at different times, so training sees events of others from after
    the moment it predicts (fashions, seasons, new items). Figures are higher than under a global
    cut, and serve for comparison with papers only.

    Events of one moment (a basket) have no order, and their order in a file may follow the item, so
    which of them counts as last is drawn at random with a fixed seed. The rest of that basket stays
    in the history, which is a second thing that this protocol lets in.

    Args:
        histories: the cleaned log.
        members: bool [n_devices], who takes part; None: all. What is drawn for somebody doesn't hang on
            the others.
        refit: train on the validation part, too.
    """
    histories = _only(_shuffle_moments(histories), members)
    from_end = np.repeat(histories.offsets[1:], histories.lengths) - np.arange(histories.n_events)
    choosing = histories.where(from_end > 2)
    return Split(
        choosing=choosing,
        train=histories.where(from_end > 1) if refit else choosing,
        validation=_targets(histories, known=from_end > 2, target=from_end == 2),
        test=_targets(histories, known=from_end > 1, target=from_end == 1),
        train_time=None,
        validation_time=None,
        test_time=None,
    )


def make_split(
    histories: Histories, config: EvaluationConfig, members: NDArray[np.bool_] | None = None
) -> Split:
    """Split as the configuration says; ``none`` trains on everything and holds nothing out.

    Args:
        histories: the cleaned log.
        config: the split, and its cuts.
        members: bool [n_devices], who takes part; None: all. Cuts at quantiles are those of all, so
            that whoever takes part has the same history and targets whoever else does.

    Raises:
        ConfigError: the cuts leave no training events, or no user with both history and targets.
    """
    if config.split == "none":
        histories = _only(histories, members)
        nothing = np.zeros(histories.n_events, dtype=np.bool_)
        empty = _targets(histories, known=nothing, target=nothing)
        return Split(histories, histories, empty, empty, None, None, None)
    if config.split == "leave-one-out":
        split = leave_one_out(histories, members, refit=config.refit)
        where = "evaluation.split = 'leave-one-out'"
        remedy = "users need three events: give more data, or use split 'none'"
    else:
        split, where = _time_split(histories, config, members)
        remedy = "move the cuts, give more data, or use split 'none'"
    if members is not None:
        remedy += ", or have more users take part (data.user_share)"
    for part, size in (
        ("no training events", split.choosing.n_events),
        ("no user with history and a validation target", split.validation.n_users),
        ("no user with history and a test target", split.test.n_users),
    ):
        if size == 0:
            raise ConfigError(f"{where} leaves {part}; {remedy}")
    return split


def _time_split(
    histories: Histories, config: EvaluationConfig, members: NDArray[np.bool_] | None
) -> tuple[Split, str]:
    if config.validation_from is not None and config.test_from is not None:
        where = (
            f"evaluation.validation_from = {config.validation_from}, test_from = {config.test_from}"
        )
        cuts = midnight(config.validation_from), midnight(config.test_from)
    else:
        where = (
            f"evaluation.validation_quantile = {config.validation_quantile}, "
            f"test_quantile = {config.test_quantile}"
        )
        if histories.n_events == 0:
            raise ConfigError(f"{where}: the log has no events to cut; give more data")
        cuts = quantile_times(histories, config.validation_quantile, config.test_quantile)
    return global_time_split(_only(histories, members), *cuts, refit=config.refit), where


def _only(histories: Histories, members: NDArray[np.bool_] | None) -> Histories:
    return histories if members is None else histories.where(members[histories.devices])


def midnight(day: dt.date) -> int:
    """Start of ``day`` in UTC, seconds since 1970."""
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp())


def _first_session(histories: Histories, start: int, stop: int | None) -> Targets:
    """Targets from the first session in [start, stop), history from before ``start``."""
    devices = histories.devices
    opens = np.ones(histories.n_events, dtype=np.bool_)
    opens[1:] = (np.diff(devices) != 0) | (np.diff(histories.sessions) != 0)
    session = np.cumsum(opens) - 1
    begins = histories.times[opens]
    held_out = begins >= start
    within = histories.times >= start
    if stop is not None:
        within &= histories.times < stop  # leaves nothing of a session that starts later
    first = np.zeros_like(held_out)
    first[np.flatnonzero(held_out)[_first_of_run(devices[opens][held_out])]] = True
    return _targets(histories, known=histories.times < start, target=first[session] & within)


def _targets(
    histories: Histories, *, known: NDArray[np.bool_], target: NDArray[np.bool_]
) -> Targets:
    """Targets from two event masks; keeps users that have both."""
    knows = np.diff(np.concatenate([[0], np.cumsum(known)])[histories.offsets]) > 0
    devices, events = histories.devices[target], np.flatnonzero(target)
    asked, at = np.unique(devices, return_index=True)
    users = asked[knows[asked]]
    pairs = np.unique(np.stack([devices, histories.items[target]], axis=1), axis=0)
    pairs = pairs[knows[pairs[:, 0]]]
    return Targets(
        history=histories.where(known).take(users),
        users=users,
        offsets=np.searchsorted(pairs[:, 0], np.append(users, histories.n_devices)),
        items=pairs[:, 1].astype(np.int32),
        now=histories.times[events[at]][knows[asked]],
        cold_users=len(asked) - len(users),
    )


def _first_of_run(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of the first occurrence of each key."""
    return np.unique(sorted_keys, return_index=True)[1]


def _shuffle_moments(histories: Histories) -> Histories:
    """The same histories, with events of one moment and session in a random order."""
    lots = np.random.default_rng(0).random(histories.n_events)
    order = np.lexsort((lots, histories.sessions, histories.times, histories.devices))
    columns = {f.name: getattr(histories, f.name)[order] for f in fields(histories)[1:]}
    return Histories(offsets=histories.offsets, **columns)
