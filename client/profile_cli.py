"""``fedprofile device``: what the owner records, looks at, and takes back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from ..common.console import remark
from ..common.errors import ConfigError, DataError, DeviceError
from ..common.files import write_atomically
from .answers import (
    Candidates,
    EraseProfileRequest,
    GetProfileResponse,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    RecordEventsResponse,
)
from .change_text import show_change
from .connect import connect
from .device_cli import DEVICE, JSON, moment, plain, tell
from .device_folder import DeviceFolder
from .interactions import Interaction, check_interaction, parse_time, read_interactions

if TYPE_CHECKING:
    from .api_client import DeviceClient
    from .device import Device

_Strategy = Literal["content", "collaborative", "sequential", "neural", "hybrid"]
_SHOWN = 15  # tags, events and items that are shown to a person
_DEFAULT_LENGTH = 10
_CHANGES = ("profile_change", "list_change")  # told only where they are asked for

record_app = typer.Typer(rich_markup_mode=None, add_completion=False)
import_app = typer.Typer(rich_markup_mode=None, add_completion=False)
profile_app = typer.Typer(rich_markup_mode=None, add_completion=False)
recommend_app = typer.Typer(rich_markup_mode=None, add_completion=False)
forget_app = typer.Typer(rich_markup_mode=None, add_completion=False)
export_app = typer.Typer(rich_markup_mode=None, add_completion=False)

_RECORD = """Record one interaction; it is stored durably, and the profile up to date, when this returns.

\b
Examples:
  fedprofile device record phone --item tea-01
  fedprofile device record phone --item tea-01 --event purchase --value 2
  fedprofile device record phone --item mug-07 --time "2024-05-31 17:05" --id till-93-4711
  fedprofile device record phone --item tea-01 --show-change --top-k 5

--show-change tells how the profile moved by it, and the list of the best new items.

Exit codes: 0 recorded, now or before; 2 it can't be.
"""
_IMPORT = """Record the interactions of a file: CSV with a header, or JSON lines (.jsonl).

Columns: item_id, timestamp, and where there are event, value, session_id, event_id. All lines are read
before the first is recorded. A file that is imported again adds nothing.

\b
Examples:
  fedprofile device import phone history.csv

Exit codes: 0 success; 2 a line that can't be used; nothing was recorded then.
"""
_PROFILE = """Show the profile: what the device knows of its owner.

\b
Examples:
  fedprofile device profile phone
  fedprofile device profile phone --declare language=fr --declare "age band=30-39"
  fedprofile device profile phone --declare language=
  fedprofile device profile phone --json

Exit codes: 0 success; 2 no device, or no model yet.
"""
_RECOMMEND = """Rank items for the owner, offline.

\b
Examples:
  fedprofile device recommend phone
  fedprofile device recommend phone --top-k 5 --explain
  fedprofile device recommend phone --candidates shelf.txt --threshold 2.5 --json
  fedprofile device recommend phone --diversity 0.3 --calibration 0.3
  fedprofile device recommend phone --strategy content --explain

Candidates are item ids, one a line. The score is the logarithm of a probability, up to a constant; with
--include-seen it is a probability.
--strategy ranks by a part of the score alone. content: what is like your interests by its public content;
its score is about six times a cosine. collaborative: what goes with what you have, and what is popular.
sequential: what often comes after the last events, likewise; a model tells one of the two. neural: what
the encoder makes of the profile. hybrid: all of it.
--diversity keeps items apart that are alike, --calibration gives each of the profile's tags its share of
the list; what the two leave of 1 is the weight of the score.

Exit codes: 0 success; 2 no device, no model yet, a model without what the strategy needs, or an
unreadable file.
"""
_FORGET = """Erase events so that their bytes are gone, and build the profile anew from what is left.

--all erases declared data and consent too, and replaces the store's key.

\b
Examples:
  fedprofile device forget phone --item tea-01
  fedprofile device forget phone --before 2024-01-01
  fedprofile device forget phone --all

Exit codes: 0 erased; 2 not erased.
"""
_EXPORT = """Write everything that is stored into one JSON file.

\b
Examples:
  fedprofile device export phone mine.json

Exit codes: 0 success; 2 the file exists, or can't be written.
"""


@record_app.command(help=_RECORD)
def record(
    path: Annotated[Path, DEVICE],
    item: Annotated[str, typer.Option(metavar="I", help="id of the item")],
    event: Annotated[str, typer.Option(metavar="E", help="type, such as purchase")] = "",
    at: Annotated[
        str | None, typer.Option("--time", metavar="T", help="ISO 8601 or seconds; unset: now")
    ] = None,
    value: Annotated[
        float | None, typer.Option(metavar="V", help="quantity, rating or duration, above 0")
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="S", help="basket or visit; unset: by pauses")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="recorded once, however often given")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show-change", help="tell how the profile and the list changed")
    ] = False,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="length of that list; unset: 10"),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """See the help text above."""
    if top_k is not None and not show:
        raise ConfigError("--top-k is the length of the list that --show-change tells of: add that")
    now = int(time.time())
    seconds = now if at is None else parse_time(at, "--time")
    one = Interaction(name or uuid.uuid4().hex, item, seconds, event, value, session)
    checked = check_interaction(one, now=now, where="record")
    with connect(path) as device:
        found = device.record([checked], change_top_k=(top_k or _DEFAULT_LENGTH) if show else None)
        if not (show and as_json):
            _told(found, device, as_json)
    if show and as_json:
        tell(found)
    elif show:
        show_change(found, Console(highlight=False))


@import_app.command(help=_IMPORT)
def import_file(
    path: Annotated[Path, DEVICE],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or JSON lines")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """See the help text above."""
    found = read_interactions(file, now=int(time.time()))
    with connect(path) as device:
        _told(device.record(found), device, as_json)


def _told(found: RecordEventsResponse, device: Device | DeviceClient, as_json: bool) -> None:
    if as_json:
        tell({name: value for name, value in asdict(found).items() if name not in _CHANGES})
        return
    remark(f"Recorded {found.recorded:,}" + f", {found.repeated:,} before" * bool(found.repeated))
    if found.unlearned and device.status().model is None:
        remark("There is no model yet that learns from it: fedprofile device model installs one.")
    elif found.unlearned:
        remark(
            f"{found.unlearned:,} of them the model can't learn from: it doesn't know the item or "
            "the event type (device status names those it knows), or the type has no weight. They are "
            "kept for a later model, and what they turn down is left out of lists."
        )


@profile_app.command(help=_PROFILE)
def profile(
    path: Annotated[Path, DEVICE],
    declare: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="state basic data; may be repeated"),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """See the help text above."""
    pairs = [statement.partition("=") for statement in declare or ()]
    for statement, (_, sign, _) in zip(declare or (), pairs, strict=True):
        if not sign:
            raise ConfigError(f"--declare {statement!r}: write NAME=VALUE")
    with connect(path) as device:
        for name, _, value in pairs:
            device.declare(name, value)
        found = device.profile()
    if as_json:
        tell(found)
    else:
        _show_profile(found, Console(highlight=False))


def _show_profile(found: GetProfileResponse, out: Console) -> None:
    updated = "never" if found.updated_at is None else moment(found.updated_at)
    # A rate that a few events tell is mostly what was expected of anybody.
    repeats = f"about {found.repeat_rate:.0%} of what comes next is expected to be had before; "
    out.print(
        f"{found.events:,} events, the newest {updated}; {repeats * (found.events > 0)}"
        f"vector of {len(found.vector)} numbers by model {found.model}",
        soft_wrap=True,
    )
    for title, shares in (
        ("declared", found.declared),
        ("interests by tag", _largest(found.tags)),
        ("items by frequency", _largest(found.frequencies)),
    ):
        if shares:
            table = Table(title, "", box=None)
            for name, share in shares.items():
                table.add_row(plain(name), plain(str(share)))
            out.print(table)
    if found.recent:
        table = Table("recent", "event", "when", box=None)
        for one in found.recent[: -_SHOWN - 1 : -1]:
            table.add_row(plain(one.item), plain(one.event), moment(one.time))
        out.print(table)


def _largest(shares: Mapping[str, float]) -> dict[str, str]:
    best = sorted(shares.items(), key=lambda one: (-one[1], one[0]))[:_SHOWN]
    return {name: f"{share:.2f}" for name, share in best}


@recommend_app.command(help=_RECOMMEND)
def recommend(
    path: Annotated[Path, DEVICE],
    candidates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="item ids, one a line; unset: all items")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="length of the list; unset: 10")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="X", help="all items that score as much, instead")
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="items that the owner has met, too")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="say what speaks for an item")] = False,
    diversity: Annotated[
        float, typer.Option(metavar="D", help="0 to 1: how much it counts that items differ")
    ] = 0.0,
    calibration: Annotated[
        float, typer.Option(metavar="C", help="0 to 1: how much the shares of tags count")
    ] = 0.0,
    strategy: Annotated[_Strategy, typer.Option(help="what ranks")] = "hybrid",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """See the help text above."""
    if top_k is not None and threshold is not None:
        raise ConfigError("--top-k and --threshold exclude each other: give one of them")
    request = RecommendRequest(
        candidates=None if candidates is None else Candidates(_read_ids(candidates)),
        top_k=(top_k or _DEFAULT_LENGTH) if threshold is None else None,
        threshold=threshold,
        include_seen=include_seen,
        explain=explain,
        diversity=diversity,
        calibration=calibration,
        strategy=strategy,
    )
    with connect(path) as device:
        found = device.recommend(request)
    if as_json:
        tell(found)
    else:
        popular = strategy in ("collaborative", "sequential", "hybrid")
        silent = ("popular" if popular else "nothing in particular") if explain else None
        _show_ranking(found, silent, Console(highlight=False))


def _read_ids(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: can't read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert it") from error
    return tuple(line.strip() for line in lines if line.strip())


def _show_ranking(found: RecommendResponse, silent: str | None, out: Console) -> None:
    """``silent``: what is said of an item that has no reason; None: no reasons are told."""
    table = Table("", "item", "score", box=None)
    for column in (table.columns[0], table.columns[2]):
        column.justify = "right"
    if silent is not None:
        table.add_column("because", overflow="fold")
    for rank, one in enumerate(found.items, start=1):
        cells = [str(rank), plain(one.item), f"{one.score:.4g}"]
        because = [] if silent is None else [plain(_because(one) or silent)]
        table.add_row(*cells, *because)
    out.print(table)
    if found.unknown_candidates:
        remark(f"{found.unknown_candidates:,} candidates are unknown to the model; left out.")
    if found.rejected_candidates:
        remark(f"{found.rejected_candidates:,} candidates were turned down before; left out.")
    if not found.items:
        remark("Nothing to recommend.")


def _because(one: Recommendation) -> str:
    events = [f"{e.event} of {e.item} on {moment(e.time)[:10]}" for e in one.events]
    tags = [f"{t.tag} ({t.share:.0%} of your interests)" for t in one.tags]
    follows = dict.fromkeys(f"often comes after {e.item}" for e in one.follows)
    held = [part.item for part in one.together]
    together = [f"goes with {', '.join(held)}"] if held else []
    # Of what is named already, that it is most like it goes without saying.
    named = {e.item for e in (*one.events, *one.follows)} | set(held)
    nearest = [f"similar to {n.item}" for n in one.nearest if n.item not in named]
    return "; ".join([*follows, *together, *events, *nearest, *tags])


@forget_app.command(help=_FORGET)
def forget(
    path: Annotated[Path, DEVICE],
    item: Annotated[str | None, typer.Option(metavar="I", help="all events with this item")] = None,
    before: Annotated[
        str | None, typer.Option(metavar="T", help="all events before; ISO 8601 or seconds")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="everything")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """See the help text above."""
    if (item is not None) + (before is not None) + everything != 1:
        raise ConfigError("give exactly one of --item, --before and --all")
    request = EraseProfileRequest(
        item=item,
        before=None if before is None else parse_time(before, "--before"),
        everything=everything,
    )
    with connect(path) as device:
        found = device.erase(request)
        aside = device.status().set_aside
    if aside:
        remark(f"Damaged stores that were set aside may hold erased events: {', '.join(aside)}.")
    if as_json:
        tell(found)
    else:
        remark(f"Erased {found.erased:,} events, {found.left:,} are left.")


@export_app.command(help=_EXPORT)
def export(
    path: Annotated[Path, DEVICE],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON file to write")],
) -> None:
    """See the help text above."""
    if file.exists():
        raise DeviceError(f"{file}: exists already; name another file")
    if not file.parent.is_dir():
        raise DeviceError(f"{file.parent}: no such folder; make it first")
    with connect(path) as device:
        content = "".join(device.export()).encode()
    write_atomically(file, content, mode=0o600)
    remark(f"Wrote {file}: everything that {DeviceFolder(path).config.name} stores.")
