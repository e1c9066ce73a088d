"""One call from configuration to interaction log: the built-in population, or files of the user."""

from __future__ import annotations

from collections.abc import Sequence
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
from .dataset import InteractionLog
from .encoding import assemble, build_catalogue, build_users, encode_events, require_population
from .parsing import as_text, parse_description
from .presets import Preset, find_preset
from .sequences import sequences
from .sources import Table, list_files, read_tables
from .synthetic import synthesise

BUILT_IN = {"synthetic": synthesise, "sequences": sequences}
"""``data.path`` → a population made on the spot."""

_USER = ("user", "user_id")  # who somebody is, which is no group


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
        _check_group(config, log.users)
        return log
    path = Path(config.path)
    files = list_files(path)
    items_path = Path(config.items) if config.items is not None else None
    if items_path is not None and path.is_dir():
        files = [file for file in files if file.resolve() != items_path.resolve()]
    preset = find_preset(config.preset, files, config.columns)
    if items_path is None:
        items_path = preset.companion(path, preset.item_tables)
    item_table = _read_items(items_path, config, preset) if items_path is not None else None
    users_path = preset.companion(path, preset.user_tables)
    user_table = _read_users(users_path, preset, config) if users_path is not None else None
    tables = _read_interactions(config, files, preset, item_table is not None)
    listed = item_table["item_id"] if item_table is not None else None
    cleaner, described, merged = _clean(tables, config, preset, listed, str(items_path))
    events = cleaner.rows
    require_population(config.path, events, cleaner.rules)
    described = described.filter(
        pl.col("user").is_in(events["user"].implode())
        & pl.col("item").is_in(events["item"].implode())
    )
    catalogue = build_catalogue(described, item_table)
    users = build_users(described, user_table)
    _check_group(config, users)
    event_types = sorted(events["event"].unique())
    weights = event_weights(preset, config)
    histories, moved = encode_events(
        events, users["user_id"], catalogue["item_id"], event_types, weights
    )
    rare_events = merged.filter(
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
        rules=(*cleaner.rules, moved),
        rare_ids=rare_ids.to_list(),
        rare=rare,
    )


def _clean(
    tables: Sequence[Table],
    config: DataConfig,
    preset: Preset,
    listed: pl.Series | None,
    items_source: str,
) -> tuple[Cleaner, pl.DataFrame, pl.DataFrame]:
    """Apply all rules; besides the events that are left, the rows before merging, which describe items,
    and the merged events, those of rare users and items among them.

    ``listed`` are the ids of the item table, if there is one, and ``items_source`` names it.
    """
    cleaner = Cleaner(stack(tables))
    remove_repeats(cleaner)
    columns = cleaner.rows.columns
    roles = preset.resolve(config.columns, columns, config.path, listed is not None)
    names = [table.name for table in tables]
    interpret(cleaner, roles, _attributes(preset, config, columns), preset.event, names)
    remove_unusable(cleaner, preset, config)
    if listed is not None:
        remove_unknown_items(cleaner, listed, items_source)
    described = cleaner.rows
    add_sessions(cleaner, config.session_gap_minutes)
    merge_baskets(cleaner)
    merged = cleaner.rows
    remove_rare(cleaner, config.minimum_user_events, config.minimum_item_events)
    return cleaner, described, merged


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


def _read_items(path: Path, config: DataConfig, preset: Preset) -> pl.DataFrame:
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
    return table.drop_nulls("item_id").unique("item_id", keep="first", maintain_order=True)


def _read_users(path: Path, preset: Preset, config: DataConfig) -> pl.DataFrame:
    """``user_id`` (unique) and attributes of the users."""
    rows = stack(read_tables(path, preset.header(path), preset.fallback_encoding))
    attributes = _attributes(preset, config, rows.columns)
    columns = {"user_id": preset.columns["user"][0], **attributes}
    table = pl.DataFrame([as_text(rows[column]).alias(name) for name, column in columns.items()])
    return table.unique("user_id", keep="first", maintain_order=True)


def _attributes(preset: Preset, config: DataConfig, found: Sequence[str]) -> dict[str, str]:
    """User attribute → column: what the preset knows, and the column that users are grouped by."""
    attributes = preset.resolve_attributes(found)
    group = config.group_column
    if group is not None and group in found and group not in {*attributes, *_USER}:
        attributes[group] = group
    return attributes


def _check_group(config: DataConfig, users: pl.DataFrame) -> None:
    if config.group_column is not None and config.group_column not in users.columns[1:]:
        raise DataError(
            f"{config.path}: data.group_column = '{config.group_column}', but nothing of that name is "
            f"known of its users (known: {', '.join(users.columns[1:]) or 'nothing'}); name a column of "
            "the interactions or the user table, or an attribute of the preset"
        )
