"""What recording changed, in words for the device's owner."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .answers import (
    ListChange,
    ProfileChange,
    RankShift,
    RecordEventsResponse,
    VectorShift,
    WeightShift,
)
from .device_cli import moment, plain

_SHOWN = 5  # tags, and items, whose weight moved
_SHOWS = 0.005  # a weight that moved by less has the same two digits


def show_change(found: RecordEventsResponse, out: Console) -> None:
    """Print how profile and list changed; where nothing was learned, that nothing did."""
    profile, ranking = found.profile_change, found.list_change
    if profile is None or ranking is None:
        _say(
            out,
            "There is no usable model to make a profile and a list with, so neither changed; "
            "fedprofile device model installs one.",
        )
    elif found.recorded > found.unlearned:
        _show_profile(profile, out)
        out.print()
        _show_list(ranking, out, gone="you have met it now")
    elif ranking.entered or ranking.left or ranking.rose or ranking.fell:
        _say(out, "Your profile stays as it was: this teaches the model nothing.")
        _show_list(ranking, out, gone="you turned it down")
    else:
        why = "was recorded before" if found.repeated else "teaches the model nothing"
        _say(out, f"Nothing changed: this {why}, so your profile and your list stay as they were.")


def _show_profile(change: ProfileChange, out: Console) -> None:
    events = f"{change.new_events:,} event{'s' * (change.new_events != 1)}"
    _say(
        out,
        f"Your profile {_moved(change.vector)}. It is made of {events} now "
        f"({change.old_events:,} before).",
    )
    _say(out, "0° is the same direction, 90° has nothing in common, 180° is the opposite.")
    if change.interests:
        table = Table("interests that halve in", "", box=None)
        for one in change.interests:
            table.add_row(f"{one.half_life:g} {plain(one.clock)}", _moved(one.shift))
        out.print(table)
    _show_weights("tag", change.tags, change.other_tags, out)
    _show_weights("item, how often", change.frequencies, change.other_frequencies, out)
    if any(one.new < one.old for one in (*change.tags, *change.frequencies)):
        _say(out, "What isn't repeated fades with time.")
    _say(
        out,
        f"Of what you do, {change.new_repeat_rate:.0%} repeats an earlier item, as far as can be told "
        f"({change.old_repeat_rate:.0%} before).",
    )
    if not change.entered:
        _say(out, "This is too old to be among the recent events, whose order counts.")
    for event in change.left:
        day = moment(event.time)[:10]
        _say(
            out, f"{event.item} of {day} is no longer among the recent events, whose order counts."
        )


def _moved(shift: VectorShift) -> str:
    """``turned by 12.4° and is 3% longer``."""
    if shift.angle is None:
        return "has its first direction" if shift.new_length else "has no direction"
    by = shift.new_length / shift.old_length - 1
    size = f"{abs(by):.1%} {'longer' if by > 0 else 'shorter'}" if abs(by) >= _SHOWS / 10 else ""
    return f"turned by {shift.angle:.1f}°" + f" and is {size}" * bool(size)


def _show_weights(title: str, shifts: tuple[WeightShift, ...], others: int, out: Console) -> None:
    shown = [one for one in shifts[:_SHOWN] if abs(one.new - one.old) >= _SHOWS]
    table = Table(title, "", "now", "(before)", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for one in shown:
        way = "rose" if one.new > one.old else "fell"
        table.add_row(plain(one.name), way, f"{one.new:.2f}", f"({one.old:.2f})")
    if shown:
        out.print(table)
    others += len(shifts) - len(shown)
    if others:
        kinds = ("tag", "tags") if title == "tag" else ("item", "items")
        # None is shown: not even the largest change can be seen in two digits.
        less = "less" if shown else f"less than {2 * _SHOWS:g}"
        _say(out, f"{others:,} {kinds[others != 1]} moved by {less}.")


def _show_list(change: ListChange, out: Console, *, gone: str) -> None:
    """``gone`` says why an item is in no list any more."""
    groups = (("in", change.entered), ("up", change.rose), ("down", change.fell))
    rows = [(one, way) for way, group in groups for one in group]
    rows.sort(key=lambda row: row[0].new_rank or 0)
    rows += [(one, "out") for one in change.left]
    stayed = len(change.stayed)
    title = f"The list of the {change.top_k:,} best items that you haven't met"
    if not rows:
        _say(out, f"{title} has the order it had.")
        return
    same = "1 item is where it was" if stayed == 1 else f"{stayed:,} items are where they were"
    _say(out, f"{title} changed; {same}.")
    table = Table("", "item", "rank", "(before)", "score", "(before)", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for one, way in rows:
        table.add_row(way, plain(one.item), *_numbers(one))
    out.print(table)
    for one in change.left:
        if one.new_rank is None:
            _say(out, f"{one.item} is out because {gone}.")
    _say(out, "The higher a score, the better the item fits.")


def _numbers(one: RankShift) -> tuple[str, str, str, str]:
    ranks = ["–" if rank is None else f"{rank:,}" for rank in (one.new_rank, one.old_rank)]
    scores = ["–" if s is None else f"{s:.4g}" for s in (one.new_score, one.old_score)]
    return ranks[0], f"({ranks[1]})", scores[0], f"({scores[1]})"


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
