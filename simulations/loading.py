"""One call from configuration to interaction log: the built-in population, or files of the user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ..common.config import DataConfig
from ..common.errors import ConfigError, DataError
from .cleaning import (
    ROW,
    TABLE,
    Cleaner,
    add_sessions,
    event_weights,
    interpret,
    merge_baskets,
    remove_rare,
    remove_repeats,
    remove_unknown_items,
    remove_unusable,
    stack,
    usable_price,
)
from .dataset import InteractionLog, Rule
from .encoding import assemble, build_catalogue, build_users, encode_events, require_population
from .parsing import as_text, parse_description
from .presets import Preset, find_preset
from .rejections import encode_pairs, turned_down
from .sequences import sequences
from .sources import Table, list_files, read_tables
from .synthetic import synthesise

BUILT_IN = {"synthetic": synthesise, "sequences": sequences}
"""``data.path`` → a population made on the spot."""

_USER = ("user", "user_id")  # who somebody is, which is no group


@dataclass(frozen=True, eq=False)
class _Cleaned:
    """Interactions after all rules.

    Attributes:
        events: what is left, one row an event.
        rules: the account.
        described: the rows before merging, which describe items.
        merged: events before rare users and items went.
        rejected: user and item of the pairs whose last event turns the item down.
        named_types: event types that any row named, ascending.
        unused: columns that nothing was read from.
    """

    events: pl.DataFrame
    rules: tuple[Rule, ...]
    described: pl.DataFrame
    merged: pl.DataFrame
    rejected: pl.DataFrame
    named_types: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Described:
    """What a table says of items or users, and its columns that nothing was read from."""

    rows: pl.DataFrame
    unused: tuple[str, ...]


def load_log(config: DataConfig) -> InteractionLog:
    """Read, clean, normalise and encode the interactions that ``config`` names.

    Raises:
        ConfigError: an unknown preset, or one for a population that is built in.
        DataError: a file can't be used, too little is left of it, or nobody knows the group column.
    """
    if config.path in BUILT_IN:
        for name, value in (("preset", config.preset != "auto"), ("items", config.items)):
            if value:
                raise ConfigError(
                    f"data.{name} = {getattr(config, name)!r} is of files, and the built-in population "
                    f"{config.path!r} has none: name a file with --data, or leave it out"
                )
        make = BUILT_IN[config.path]
        log = make(config.synthetic_users, config.synthetic_items, config.synthetic_seed)
        _check_group(config, log.users, ())
        return log
    path = Path(config.path)
    files = list_files(path)
    items_path = Path(config.items) if config.items is not None else None
    if items_path is not None and path.is_dir():
        files = [file for file in files if file.resolve() != items_path.resolve()]
    preset = find_preset(config.preset, files, config.columns)
    if items_path is None:
        items_path = preset.companion(path, preset.item_tables)
    items = _read_items(items_path, config, preset) if items_path is not None else None
    users_path = preset.companion(path, preset.user_tables)
    people = _read_users(users_path, preset, config) if users_path is not None else None
    tables = _read_interactions(config, files, preset, items is not None)
    listed = items.rows["item_id"] if items is not None else None
    cleaned = _clean(tables, config, preset, listed, str(items_path))
    events = cleaned.events
    require_population(config.path, events, cleaned.rules)
    described = cleaned.described.filter(
        pl.col("user").is_in(events["user"].implode())
        & pl.col("item").is_in(events["item"].implode())
    )
    catalogue = build_catalogue(described, items.rows if items is not None else None)
    users = build_users(described, people.rows if people is not None else None)
    unused = {
        "interactions": cleaned.unused,
        "items": items.unused if items is not None else (),
        "users": people.unused if people is not None else (),
    }
    _check_group(config, users, (*unused["interactions"], *unused["users"]))
    event_types = sorted(events["event"].unique())
    weights = event_weights(preset, config)
    histories, moved = encode_events(
        events, users["user_id"], catalogue["item_id"], event_types, weights
    )
    rare_events = cleaned.merged.filter(
        ~pl.col("user").is_in(events["user"].implode())
        & pl.col("item").is_in(catalogue["item_id"].implode())
        & pl.col("event").is_in(event_types)
    )
    rare_ids = rare_events["user"].unique().sort()
    rare, _ = encode_events(rare_events, rare_ids, catalogue["item_id"], event_types, weights)
    return assemble(
        histories,
        catalogue,
        users,
        event_types,
        source=config.path,
        preset=preset.name,
        rows_per_file=[(table.name, table.frame.height) for table in tables],
        rules=(*cleaned.rules, moved),
        rare_ids=rare_ids.to_list(),
        rare=rare,
        rejected=encode_pairs(cleaned.rejected, users["user_id"], catalogue["item_id"]),
        rare_rejected=encode_pairs(cleaned.rejected, rare_ids, catalogue["item_id"]),
        named_types=cleaned.named_types,
        unused_columns={table: names for table, names in unused.items() if names},
    )


def _clean(
    tables: Sequence[Table],
    config: DataConfig,
    preset: Preset,
    listed: pl.Series | None,
    items_source: str,
) -> _Cleaned:
    """Apply all rules.

    ``listed`` are the ids of the item table, if there is one, and ``items_source`` names it.
    """
    cleaner = Cleaner(stack(tables))
    remove_repeats(cleaner)
    columns = cleaner.rows.columns
    roles = preset.resolve(config.columns, columns, config.path, listed is not None)
    names = [table.name for table in tables]
    attributes = _attributes(preset, config, columns)
    interpret(cleaner, roles, attributes, preset.event, names)
    named_types = cleaner.rows["event"].unique().sort()
    rejections = remove_unusable(cleaner, preset, config)
    if listed is not None:
        remove_unknown_items(cleaner, listed, items_source)
    described = cleaner.rows
    add_sessions(cleaner, config.session_gap_minutes)
    merge_baskets(cleaner)
    merged = cleaner.rows
    remove_rare(cleaner, config.minimum_user_events, config.minimum_item_events)
    return _Cleaned(
        events=cleaner.rows,
        rules=tuple(cleaner.rules),
        described=described,
        merged=merged,
        rejected=turned_down(rejections, described),
        named_types=tuple(named_types),
        unused=_unused(columns, (*roles.values(), *attributes.values())),
    )


def _read_interactions(
    config: DataConfig, files: Sequence[Path], preset: Preset, has_item_table: bool
) -> list[Table]:
    chosen = preset.interaction_files(files)
    if not chosen:
        raise DataError(
            f"{config.path}: preset {preset.name} needs {' or '.join(preset.interactions)}; "
            f"found: {', '.join(file.name for file in files) or 'no table'}"
        )
    tables = [
        table
        for file in chosen
        for table in read_tables(file, preset.header(file), preset.fallback_encoding)
    ]
    for table in tables:
        preset.resolve(config.columns, table.frame.columns, table.name, has_item_table)
    return tables


def _read_items(path: Path, config: DataConfig, preset: Preset) -> _Described:
    """``item_id`` (unique) and what the table says about it; the first line of an item counts."""
    rows = stack(read_tables(path, preset.header(path), preset.fallback_encoding))
    found = [name for name in rows.columns if name not in (TABLE, ROW)]
    roles = preset.resolve_items(config.columns, found, path.name)
    ids = as_text(rows[roles["item"]]).alias("item_id")
    if preset.product_code:
        ids = ids.str.to_uppercase()
    table = pl.DataFrame([ids, *parse_description(rows, roles)])
    if "price" in table.columns:
        table = table.with_columns(usable_price())
    table = table.drop_nulls("item_id").unique("item_id", keep="first", maintain_order=True)
    return _Described(table, _unused(found, roles.values()))


def _read_users(path: Path, preset: Preset, config: DataConfig) -> _Described:
    """``user_id`` (unique) and attributes of the users."""
    rows = stack(read_tables(path, preset.header(path), preset.fallback_encoding))
    attributes = _attributes(preset, config, rows.columns)
    columns = {"user_id": preset.columns["user"][0], **attributes}
    table = pl.DataFrame([as_text(rows[column]).alias(name) for name, column in columns.items()])
    table = table.unique("user_id", keep="first", maintain_order=True)
    return _Described(table, _unused(rows.columns, columns.values()))


def _unused(found: Iterable[str], used: Iterable[str]) -> tuple[str, ...]:
    taken = {*used, TABLE, ROW}
    return tuple(name for name in found if name not in taken)


def _attributes(preset: Preset, config: DataConfig, found: Sequence[str]) -> dict[str, str]:
    """User attribute → column: what the preset knows, and the column that users are grouped by."""
    attributes = preset.resolve_attributes(found)
    group = config.group_column
    if group is not None and group in found and group not in {*attributes, *_USER}:
        attributes[group] = group
    return attributes


def _check_group(config: DataConfig, users: pl.DataFrame, others: Sequence[str]) -> None:
    """``others`` are columns that nothing was read from, any of which could be named."""
    if config.group_column is not None and config.group_column not in users.columns[1:]:
        could = f"; columns that could be: {', '.join(others)}" if others else ""
        raise DataError(
            f"{config.path}: data.group_column = '{config.group_column}', but nothing of that name is "
            f"known of its users (known: {', '.join(users.columns[1:]) or 'nothing'}{could}); name a "
            "column of the interactions or the user table, or an attribute of the preset"
        )
