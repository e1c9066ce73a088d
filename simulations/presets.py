"""Layouts of interaction data that are known by name: which column is what, and what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..common.config import ColumnMapping
from ..common.errors import ConfigError, DataError
from .sources import column_names

REQUIRED = ("user", "item", "time")
"""Roles that no log can do without."""

DESCRIPTIVE = ("text", "category", "price", "tags")
"""Roles that say what an item is."""


@dataclass(frozen=True)
class Preset:
    """How to read one layout.

    Attributes:
        name: as in ``data.preset``.
        columns: role → column names accepted for it, best first. Roles are those of
            ``data.columns``, and ``tags``.
        user_attributes: attribute → column names accepted for it.
        headers: file name → columns, for files that come without a header line.
        interactions: names of the files with interactions, best first; none: every table.
        item_tables: names of item tables that may lie beside the interactions.
        user_tables: the same for tables of users.
        fallback_encoding: of text files that are not UTF-8.
        event: name of the event where no column says it.
        event_weights: event type → weight; one that isn't named weighs 1, ≤ 0 is a negative event.
        cancelled_session: regular expression of sessions that take an earlier one back.
        product_code: regular expression of items that are products, after upper-casing.
        zero_price_is_no_sale: rows priced at zero or less are stock movements, not sales.
        goods: items are things that a shop sells, whose names say what they are.
    """

    name: str
    columns: Mapping[str, tuple[str, ...]]
    user_attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interactions: tuple[str, ...] = ()
    item_tables: tuple[str, ...] = ()
    user_tables: tuple[str, ...] = ()
    fallback_encoding: str | None = None
    event: str = "interaction"
    event_weights: Mapping[str, float] = field(default_factory=dict)
    cancelled_session: str | None = None
    product_code: str | None = None
    zero_price_is_no_sale: bool = False
    goods: bool = False

    def resolve(
        self,
        mapping: ColumnMapping,
        found: Sequence[str],
        table: str,
        has_item_table: bool = False,
    ) -> dict[str, str]:
        """Role → column of ``table``; ``data.columns`` goes before the preset, "" unsets a role.

        With an item table, a text, category or price column may be there instead.

        Raises:
            DataError: a required column is missing, or one named in ``data.columns``.
        """
        roles: dict[str, str] = {}
        chosen = mapping.model_dump()
        for role in (*ColumnMapping.model_fields, "tags"):
            name = chosen.get(role)
            accepted = self.columns.get(role, ()) if name is None else (name,) if name else ()
            column = next((c for c in accepted if c in found), None)
            if column is not None:
                roles[role] = column
            elif role in REQUIRED or (name and not (has_item_table and role in DESCRIPTIVE)):
                looked = f"looked for {' or '.join(map(repr, accepted)) or 'none'}"
                raise DataError(
                    f"{table}: no {role} column ({looked}); set data.columns.{role} "
                    f"to one of: {', '.join(found)}"
                )
        return roles

    def resolve_items(
        self, mapping: ColumnMapping, found: Sequence[str], table: str
    ) -> dict[str, str]:
        """Role → column of an item table, by ``data.columns``, the preset's or the generic names.

        Raises:
            DataError: the table has no item column, or says nothing about the items.
        """
        chosen = mapping.model_dump()
        roles: dict[str, str] = {}
        for role in ("item", *DESCRIPTIVE):
            accepted = (
                chosen.get(role),
                *self.columns.get(role, ()),
                *GENERIC.columns[role],
            )
            column = next((name for name in accepted if name in found), None)
            if column is not None:
                roles[role] = column
        if "item" not in roles or len(roles) == 1:
            raise DataError(
                f"{table}: an item table needs item_id and one of {', '.join(DESCRIPTIVE)} "
                f"(or their names in data.columns); found: {', '.join(found)}"
            )
        return roles

    def fits(self, mapping: ColumnMapping, found: Sequence[str]) -> bool:
        """Whether a table with these columns can be read by this preset."""
        try:
            self.resolve(mapping, found, "")
        except DataError:
            return False
        return True

    def resolve_attributes(self, found: Sequence[str]) -> dict[str, str]:
        """User attribute → column, those that are there."""
        attributes: dict[str, str] = {}
        for attribute, accepted in self.user_attributes.items():
            column = next((name for name in accepted if name in found), None)
            if column is not None:
                attributes[attribute] = column
        return attributes

    def interaction_files(self, files: Sequence[Path]) -> list[Path]:
        """Those of ``files`` that hold interactions; a file given alone is taken as named."""
        if len(files) == 1 or not self.interactions:
            return list(files)
        found = {file.name.lower(): file for file in files}
        return [found[name] for name in self.interactions if name in found][:1]

    def header(self, path: Path) -> tuple[str, ...] | None:
        """Column names of a file that comes without a header line."""
        return self.headers.get(path.name.lower())

    def companion(self, path: Path, names: Sequence[str]) -> Path | None:
        """The first of ``names`` that lies in the folder of the interactions."""
        folder = path if path.is_dir() else path.parent
        return next((folder / name for name in names if (folder / name).is_file()), None)


ONLINE_RETAIL = Preset(
    name="online-retail-ii",
    columns={
        "user": ("Customer ID", "CustomerID"),
        "item": ("StockCode",),
        "time": ("InvoiceDate",),
        "value": ("Quantity",),
        "session": ("Invoice", "InvoiceNo"),
        "text": ("Description",),
        "price": ("Price", "UnitPrice"),
    },
    user_attributes={"country": ("Country",)},
    fallback_encoding="latin-1",
    event="purchase",
    # C536379 takes an invoice back, in part or whole.
    cancelled_session=r"^[Cc]",
    # Five digits and at most a variant's letters; DCGS… and SP… are products of the web shop.
    # What is left: POST, DOT, C2, M, D, S, B, BANK CHARGES, AMAZONFEE, ADJUST…, CRUK, PADS,
    # gift vouchers and TEST….
    product_code=r"^(\d{5}[A-Z]{0,2}|DCGS\w+|SP\d+)$",
    zero_price_is_no_sale=True,
    goods=True,
)

_RATINGS = ("userId", "movieId", "rating", "timestamp")
MOVIELENS = Preset(
    name="movielens",
    columns={
        "user": ("userId",),
        "item": ("movieId",),
        "time": ("timestamp",),
        "value": ("rating",),
        "text": ("title",),
        "category": ("genres",),
        "tags": ("genres",),
    },
    user_attributes={name: (name,) for name in ("gender", "age", "occupation")},
    headers={
        "ratings.dat": _RATINGS,
        "movies.dat": ("movieId", "title", "genres"),
        "users.dat": ("userId", "gender", "age", "occupation", "zip"),
        "u.data": _RATINGS,
    },
    interactions=("ratings.dat", "ratings.csv", "u.data"),
    item_tables=("movies.dat", "movies.csv"),
    user_tables=("users.dat",),
    fallback_encoding="latin-1",
    event="rating",
)

GENERIC = Preset(
    name="generic",
    columns={
        "user": ("user_id",),
        "item": ("item_id",),
        "time": ("timestamp",),
        "event": ("event",),
        "value": ("value",),
        "session": ("session_id",),
        "text": ("text",),
        "category": ("category",),
        "price": ("price",),
        "tags": ("tags",),
    },
    user_attributes={name: (name,) for name in ("country", "gender", "age")},
)


def _domain(name: str, events_by_weight: Mapping[float, str], *, goods: bool = False) -> Preset:
    weights = {
        event: float(weight)
        for weight, events in events_by_weight.items()
        for event in events.split()
    }
    return replace(GENERIC, name=name, event_weights=weights, goods=goods)


# A weight is the strength of evidence for interest within a domain; an impression is none at all.
_DOMAINS = (
    _domain(
        "shop",
        {
            5: "purchase buy order transaction",
            3: "cart add_to_cart",
            2: "wishlist favorite favourite",
            1: "view click",
            0: "impression",
            -1: "remove_from_cart return refund cancel",
        },
        goods=True,
    ),
    _domain(
        "social",
        {
            4: "share repost follow",
            3: "comment reply save",
            2: "like",
            1: "view click",
            0: "impression",
            -1: "hide unlike dislike unfollow mute block report",
        },
    ),
    _domain(
        "video",
        {
            4: "share",
            3: "complete like save subscribe",
            1: "play watch view click",
            0: "impression",
            -1: "skip hide dislike unsubscribe",
        },
    ),
    _domain(
        "music",
        {
            4: "add_to_playlist share",
            3: "like save",
            2: "complete replay",
            1: "play listen",
            0: "impression",
            -1: "skip dislike ban",
        },
    ),
    _domain(
        "search",
        {
            5: "conversion purchase",
            3: "long_click save",
            1: "click view",
            0: "impression query",
            -1: "bounce skip hide",
        },
    ),
    _domain(
        "education",
        {
            5: "certificate",
            4: "complete",
            3: "enroll",
            2: "attempt submit bookmark",
            1: "start view",
            0: "impression",
            -1: "drop unenroll",
        },
    ),
    _domain(
        "health",
        {
            5: "attend",
            4: "book",
            3: "complete",
            2: "log save",
            1: "start read view",
            0: "impression",
            -1: "dismiss cancel",
        },
    ),
)

PRESETS: Mapping[str, Preset] = {
    preset.name: preset for preset in (ONLINE_RETAIL, MOVIELENS, GENERIC, *_DOMAINS)
}


def find_preset(name: str, files: Sequence[Path], mapping: ColumnMapping) -> Preset:
    """The preset called ``name``; ``auto`` takes the layout whose columns ``files`` have.

    Domain presets share their columns with ``generic`` and are never guessed. Where no layout fits
    it is ``generic``, whose message names the columns found.

    Raises:
        ConfigError: no preset has this name.
        DataError: a file can't be read.
    """
    if name == "auto":
        for preset in (MOVIELENS, ONLINE_RETAIL):
            for file in preset.interaction_files(files)[:1]:
                if preset.fits(mapping, column_names(file, preset.header(file))):
                    return preset
        return GENERIC
    if name not in PRESETS:
        raise ConfigError(
            f"data.preset: no preset '{name}'; use auto or one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]
