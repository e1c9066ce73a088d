"""What a replay found, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from .tables import interval, mean

_WIDE = 110  # columns of a terminal that has room for intervals


def show(found: Mapping[str, Any], out: Console) -> None:
    """Print the tables; ``found`` is what ``--json`` tells."""
    for view, groups in found["replay"].items():
        _policies(view, groups, found, out)
    out.print(
        "gain: profile that follows every event, against the frozen one"
        + ("" if out.width >= _WIDE else "; * where the 95 % interval excludes 0")
    )
    if found["latency"]:
        _latency(found["latency"], found["k"], out)
    _cold_start(found, out)


def _policies(
    view: str, groups: list[dict[str, Any]], found: Mapping[str, Any], out: Console
) -> None:
    title = f"NDCG@{found['k']}, {view} items, mean over users"
    table = Table("", title=title, title_justify="left")
    for heading in ("moments", *groups[0]["ndcg_at_k"], "gain"):
        table.add_column(heading, justify="right")
    small = [group for group in groups if 0 < group["users"] < found["smallest_group"]]
    for group in groups:
        if group["users"] and group not in small:
            means = (mean(value) for value in group["ndcg_at_k"].values())
            gain = _gain(group["gain"], wide=out.width >= _WIDE)
            table.add_row(group["name"], f"{group['moments']:,}", *means, gain)
    if table.row_count:
        out.print(table)
    else:
        out.print(f"{title}: nothing to show")
    if small:
        groups_are = "is 1 group" if len(small) == 1 else f"are {len(small)} groups"
        names = ", ".join(f"{group['name']} ({group['users']})" for group in small)
        out.print(f"left out {groups_are} of fewer than {found['smallest_group']} users: {names}")


def _latency(latency: Mapping[str, Any], k: int, out: Console) -> None:
    update, ranking = latency["update_ms"], latency["list_ms"]
    out.print(
        f"on this machine a device learns an event in {_milliseconds(update)} and lists {k} new items "
        f"in {_milliseconds(ranking)}, over {latency['moments']:,} moments; storing the event isn't in it"
    )


def _milliseconds(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ms (95 %: {spread['p95']:.2f})"


def _cold_start(found: Mapping[str, Any], out: Console) -> None:
    users, lists = found["cold_start"]["users"], found["cold_start"]["lists"]
    title = f"Cold start: {found['k']} new items for {users:,} test users"
    if not lists:
        out.print(f"{title}: fewer than {found['smallest_group']}, nothing to show")
        return
    table = Table("known", title=title, title_justify="left")
    for heading in (f"NDCG@{found['k']}", f"HR@{found['k']}", "against popularity"):
        table.add_column(heading, justify="right")
    for row in lists:
        gain = "" if row["gain"] is None else _gain(row["gain"], wide=True)
        hit = mean(row["hr_at_k"]) + (_star(row["hr_gain"]) if row["hr_gain"] else " ")
        table.add_row(row["name"], interval(row["ndcg_at_k"]), hit, gain)
    out.print(table)
    out.print(
        "known: events of each profile; what is new is told by the whole history in every row; * where the "
        "95 % interval of the difference from popularity excludes 0"
    )


def _gain(gain: Mapping[str, float | None], *, wide: bool) -> str:
    middle, low, high = gain["mean"], gain["low"], gain["high"]
    if middle is None or low is None or high is None:
        return "–" if middle is None else f"{middle:+.4f}"
    if wide:
        return f"{middle:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"{middle:+.4f}{_star(gain)}"


def _star(gain: Mapping[str, float | None]) -> str:
    """Marks a difference whose interval excludes 0."""
    low, high = gain["low"], gain["high"]
    return "*" if low is not None and high is not None and (low > 0 or high < 0) else " "
