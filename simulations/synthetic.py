"""A built-in population of shoppers: public catalogue, private tastes, eighteen months of baskets.

What can be learned from it, besides what is popular and which names resemble each other:

- *successors*: after topic A a user's next basket turns to a fixed other topic, whose names share
  no word with A's (cradles after wedding gifts);
- *partners*: within a basket, a topic draws items of another fixed topic (napkins with candles);
- *appeal of words and prices*: styles and kinds of thing sell differently, cheap sells more;
- *fads and launches*: a style is in fashion for some weeks, new items sell best when new;
- *people*: a few home topics that drift over a user's life, favourite styles, a price level, a
  habit of buying again; topics are liked differently from country to country.

Tastes stay on the users' side: the catalogue holds name, department, style and price of an item,
and the transitions are nowhere written down. Item ids are shuffled and say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..common.histories import Histories
from .dataset import InteractionLog
from .encoding import assemble

# department → topic → (motifs, things)
_TOPICS = {
    "kitchen": {
        "baking": ("cupcake gingerbread vanilla pastry", "cake tin|whisk|rolling pin|muffin case"),
        "tea": ("teatime english breakfast chai", "teapot|mug|tea cosy|sugar bowl|biscuit box"),
        "picnic": ("gingham summer hamper orchard", "lunch bag|flask|cutlery set|cool bag|plate"),
    },
    "home": {
        "candles": ("lavender beeswax glowing scented", "candle|t-light holder|lantern|wick jar"),
        "cushions": ("velvet patchwork knitted woven", "cushion|throw|blanket|draught stopper"),
        "clocks": ("station mantel pendulum railway", "wall clock|alarm clock|hourglass|barometer"),
    },
    "garden": {
        "flowers": ("rose tulip daisy peony", "vase|planter|seed box|watering can|flower press"),
        "birds": ("robin wren swallow sparrow", "nesting box|feeder|bird bath|egg cup"),
        "tools": ("hedgerow allotment potting cottage", "trowel|garden gloves|twine|plant marker"),
    },
    "party": {
        "birthday": ("balloon confetti streamer jubilee", "bunting|party hat|candle|paper plate"),
        "wedding": ("bridal orchid champagne keepsake", "guest book|ring box|favour bag|garland"),
        "napkins": ("paisley doily damask lace", "napkins|place mat|table runner|napkin ring"),
    },
    "children": {
        "dolls": ("ballerina fairy princess mermaid", "doll|puppet|dressing-up box|tutu"),
        "trains": ("express steam wooden tunnel", "train set|jigsaw|signal lamp|toy box"),
        "nursery": ("lullaby sleepy moonlight cradle", "mobile|night light|bib|cot blanket"),
    },
    "paper": {
        "letters": ("airmail postal parchment script", "notebook|writing set|envelope box|stamp"),
        "wrapping": ("ribbon tissue kraft tinsel", "gift wrap|gift bag|gift tag|paper chain"),
        "drawing": ("pastel charcoal rainbow sketch", "pencil tin|crayon set|easel|eraser|ruler"),
    },
    "fashion": {
        "scarves": ("silk cashmere tartan fringed", "scarf|shawl|beret|gloves|hair band"),
        "jewellery": ("pearl amber locket filigree", "necklace|bracelet|brooch|trinket box"),
        "bags": ("jumbo canvas commuter weekend", "shopper|tote|purse|wash bag|luggage tag"),
    },
    "seasons": {
        "christmas": ("reindeer mistletoe snowflake holly", "bauble|stocking|wreath|advent box"),
        "easter": ("bunny lamb chick hatching", "egg basket|egg hunt kit|wreath|ribbon"),
        "seaside": ("nautical lighthouse pebble harbour", "deck chair|bucket|shell box|flag"),
    },
}
_STYLES = {
    "vintage": "vintage|antique|heirloom",
    "retro": "retro|fifties|diner",
    "rustic": "rustic|farmhouse|driftwood",
    "modern": "modern|minimal|geometric",
    "romantic": "romantic|heart|blush",
    "folk": "folk art|nordic|embroidered",
    "pop": "neon|pop art|zigzag",
    "botanical": "botanical|leaf|fern",
    "metallic": "silver|gilded|copper",
    "spotty": "polkadot|spotty|dotty",
}
_SIZES = ("", "", "", "small", "large", "set of 3", "set of 6", "pack of 12")
_COUNTRIES = ("United Kingdom", "Germany", "France", "Japan")
_COUNTRY_SHARES = (0.7, 0.15, 0.1, 0.05)

_START = 1_672_617_600  # 2023-01-02 00:00 UTC
_DAYS = 548
_CANDIDATES = 12
_BLOCK = (
    16_384  # users made at a time: memory beyond the histories doesn't grow with the population
)
_HOMES = 2
_MOST_EVENTS = 60  # of a user
_USUAL_STRENGTH = np.float32(np.log1p(2))  # of two pieces, which most people buy

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _World:
    """What no user decides: items in topic order, and how topics follow each other.

    Attributes:
        topic: [items] ascending; style: [items]; price: [items]; price_level: [items], standardised
            log price within the topic; launch: [items], day.
        shelf: [topics, places], an item of the topic at each place; appeal takes more places.
        classic: [topics], an item of the topic that is on sale from day 0.
        successor: [topics], the topic of a next basket; partner: [topics], the topic beside.
        season: [months, topics], cumulative shares of undirected purchases.
        fashion: [days, styles], log of how much a style is in fashion.
        homes: [countries, topics], cumulative shares of home topics.
    """

    topic: _Ints
    style: _Ints
    price: _Floats
    price_level: _Floats
    launch: _Ints
    shelf: _Ints
    classic: _Ints
    successor: _Ints
    partner: _Ints
    season: _Floats
    fashion: _Floats
    homes: _Floats


def synthesise(users: int, items: int, seed: int) -> InteractionLog:
    """A population with some 15–60 events a user; the same numbers and seed give the same log.

    Args:
        users: number of users, at least 1.
        items: number of items, at least 2.
        seed: of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    world = _make_world(items, rng)
    index = rng.permutation(items)  # position in topic order → public item index
    histories, country = _make_people(world, index, users, seed)
    people = pl.DataFrame(
        {
            "user_id": _ids("user", users),
            "country": pl.Series(_COUNTRIES).gather(country),
        }
    )
    return assemble(
        histories,
        _make_catalogue(world, index, rng),
        people,
        ("purchase",),
        source="synthetic",
        preset="synthetic",
        rows_per_file=(("synthetic", histories.n_events),),
        rules=(),
    )


def _ids(kind: str, count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{kind}-{number:0{width}d}" for number in range(count)]


def _make_world(items: int, rng: np.random.Generator) -> _World:
    topics = min(sum(map(len, _TOPICS.values())), items)
    topic = np.sort(np.arange(items) % topics)
    bounds = np.searchsorted(topic, np.arange(topics + 1))
    style = rng.integers(len(_STYLES), size=items)
    price_level = rng.normal(size=items)
    price = np.exp(rng.normal(1.2, 0.5, size=topics)[topic] + 0.6 * price_level)
    launch = np.where(rng.random(items) < 0.55, 0, rng.integers(1, _DAYS - 30, size=items))
    launch[bounds[:-1]] = 0
    log_appeal = (
        rng.normal(scale=0.5, size=len(_STYLES))[style]
        + rng.normal(scale=0.9, size=items)
        - 0.5 * price_level
    )
    shares = _zipf(topics)[rng.permutation(topics)]
    month = np.arange(_DAYS // 30 + 1)[:, None]
    season = shares * np.exp(
        rng.gamma(1.0, 0.5, size=topics)
        * np.cos(2 * np.pi * (month - rng.integers(12, size=topics)) / 12)
    )
    day = np.arange(_DAYS)[:, None]
    fashion = np.zeros((_DAYS, len(_STYLES)))
    for _ in range(3):
        peak = rng.integers(_DAYS, size=len(_STYLES))
        fashion += 1.5 * np.exp(-(((day - peak) / 25.0) ** 2))
    homes = np.stack([shares, *(shares[rng.permutation(topics)] for _ in _COUNTRIES[1:])])
    homes[1:] = (homes[1:] + shares) / 2
    # A shifted cycle has no fixed point: a topic is never its own successor or partner.
    cycle = rng.permutation(topics)
    place = np.argsort(cycle)
    return _World(
        topic=topic,
        style=style,
        price=price.round(2),
        price_level=price_level,
        launch=launch,
        shelf=_fill_shelves(np.exp(log_appeal), bounds),
        classic=bounds[:-1],
        successor=cycle[(place + 1) % topics],
        partner=cycle[(place + topics // 3 + 1) % topics],
        season=np.cumsum(season / season.sum(axis=1, keepdims=True), axis=1),
        fashion=fashion,
        homes=np.cumsum(homes, axis=1),
    )


def _fill_shelves(appeal: _Floats, bounds: _Ints) -> _Ints:
    """Places instead of a search in cumulative shares: drawing a candidate is one look-up."""
    places = 64 * int(np.diff(bounds).max())
    grid = (np.arange(places) + 0.5) / places
    shelves = []
    for start, stop in pairwise(bounds):
        share = np.cumsum(appeal[start:stop])
        shelves.append(start + np.searchsorted(share / share[-1], grid))
    return np.stack(shelves)


def _zipf(count: int) -> _Floats:
    shares = 1.0 / (np.arange(count) + 8.0)
    return np.asarray(shares / shares.sum())


def _pick(cumulative: _Floats, rng: np.random.Generator) -> _Ints:
    """One draw per row of cumulative shares [rows, choices]."""
    draws = rng.random((len(cumulative), 1)) * cumulative[:, -1:]
    choice: _Ints = np.minimum((draws > cumulative).sum(axis=1), cumulative.shape[1] - 1)
    return choice


def _make_people(
    world: _World, index: _Ints, users: int, seed: int
) -> tuple[Histories, NDArray[np.int64]]:
    """Everybody's histories, and their countries."""
    # Room for the most events there could be: memory that nothing is written to costs nothing.
    room = users * _MOST_EVENTS
    histories = Histories(
        offsets=np.zeros(users + 1, dtype=np.int64),
        items=np.empty(room, dtype=np.int32),
        times=np.empty(room, dtype=np.int64),
        sessions=np.empty(room, dtype=np.int32),
        weights=np.empty(room, dtype=np.float32),
        types=np.zeros(room, dtype=np.int16),
    )
    country = np.empty(users, dtype=np.int64)
    events = 0
    for first in range(0, users, _BLOCK):
        stop = min(first + _BLOCK, users)
        rng = np.random.default_rng([seed, first])
        block, country[first:stop] = _make_block(world, stop - first, rng)
        rows = slice(events, events + block.n_events)
        histories.offsets[first + 1 : stop + 1] = events + block.offsets[1:]
        histories.items[rows] = index[block.items]
        histories.times[rows] = block.times
        histories.sessions[rows] = block.sessions
        np.log1p(block.weights, out=histories.weights[rows])
        events = rows.stop
    written = {f.name: getattr(histories, f.name)[:events] for f in fields(histories)[1:]}
    histories = replace(histories, **written)
    histories.weights[:] /= _USUAL_STRENGTH
    return histories, country


def _make_block(
    world: _World, users: int, rng: np.random.Generator
) -> tuple[Histories, NDArray[np.int64]]:
    """Histories over items in topic order, with quantities as weights; and the users' countries."""
    country = rng.choice(len(_COUNTRIES), size=users, p=_COUNTRY_SHARES)
    lengths = np.clip(rng.lognormal(np.log(28.0), 0.4, size=users), 17, _MOST_EVENTS).astype(
        np.int64
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    user = np.repeat(np.arange(users), lengths)
    first = np.zeros(len(user), dtype=bool)
    first[offsets[:-1]] = True
    opens = first | (rng.random(len(user)) < 0.3)
    basket = np.cumsum(opens) - 1
    basket_user = user[opens]
    time = _basket_times(basket_user, users, rng)
    main = _main_topics(world, basket_user, country, rng)

    day = (time - _START)[basket] // 86_400
    kind = rng.random(len(user))
    anything = _pick(world.season[day // 30], rng)
    own = main[basket]
    topic = np.where(kind < 0.68, own, np.where(kind < 0.9, world.partner[own], anything))
    item = _choose_items(world, topic, day, user, users, rng)
    item = _buy_again(item, user, basket, offsets, rng)

    # An item stands in a basket once.
    _, kept = np.unique(basket * len(world.topic) + item, return_index=True)
    kept.sort()
    item, user, basket = item[kept], user[kept], basket[kept]
    lengths = np.bincount(user, minlength=users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    price = world.price[item]
    histories = Histories(
        offsets=offsets,
        items=item.astype(np.int32),
        times=time[basket],
        sessions=(basket - basket[offsets[:-1]][user]).astype(np.int32),
        weights=(1.0 + rng.poisson(4.0 / price)).astype(np.float32),
        types=np.zeros(len(item), dtype=np.int16),
    )
    return histories, country


def _basket_times(basket_user: _Ints, users: int, rng: np.random.Generator) -> _Ints:
    """Seconds of each basket, ascending within a user; half of the users join later."""
    join = np.where(rng.random(users) < 0.5, 0.0, 0.6 * rng.random(users))[basket_user]
    place = join + (1.0 - join) * rng.random(len(basket_user))
    days = place[np.lexsort((place, basket_user))] * _DAYS
    # Nights are quiet: a day's span is laid over 07:00 to 22:00, which keeps the order.
    hours = 7.0 + 15.0 * (days % 1.0)
    return _START + np.floor(days).astype(np.int64) * 86_400 + (hours * 60).astype(np.int64) * 60


def _main_topics(
    world: _World, basket_user: _Ints, country: _Ints, rng: np.random.Generator
) -> _Ints:
    """The topic of each basket: the successor of the user's last one, or a home topic."""
    users = len(country)
    counts = np.bincount(basket_user, minlength=users)
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    homes = np.stack([_pick(world.homes[country], rng) for _ in range(_HOMES)], axis=1)
    life = (np.arange(len(basket_user)) - starts[basket_user]) / counts[basket_user]
    # Interest wanders from the first home topic to the last.
    centre = np.arange(_HOMES) / (_HOMES - 1)
    closeness = np.exp(-(((life[:, None] - centre) / 0.5) ** 2))
    home = homes[basket_user, _pick(np.cumsum(closeness, axis=1), rng)]
    follows = rng.random(len(basket_user)) < 0.4
    main = home.copy()
    for step in range(1, int(counts.max())):
        now = (starts + step)[counts > step]
        main[now] = np.where(follows[now], world.successor[main[now - 1]], home[now])
    return main


def _choose_items(
    world: _World,
    topic: _Ints,
    day: _Ints,
    user: _Ints,
    users: int,
    rng: np.random.Generator,
) -> _Ints:
    """One item per event: of some candidates, drawn by appeal, the one that suits user and day."""
    place = rng.integers(world.shelf.shape[1], size=(len(topic), _CANDIDATES))
    candidates = world.shelf[topic[:, None], place]
    candidates[:, 0] = world.classic[topic]
    liking = rng.normal(scale=1.3, size=(users, len(_STYLES))).astype(np.float32)
    level = rng.normal(scale=0.8, size=users)
    style = world.style[candidates]
    age = day[:, None] - world.launch[candidates]
    fit = (
        liking[user[:, None], style]
        - 0.4 * (world.price_level[candidates] - level[user][:, None]) ** 2
        + world.fashion[day[:, None], style]
        + np.where(world.launch[candidates] > 0, 1.5 * np.exp(-np.maximum(age, 0) / 40.0), 0.0)
        + rng.gumbel(size=candidates.shape)
    )
    fit[:, 0] -= 2.0  # stands in for want of others, not for its appeal
    fit[age < 0] = -np.inf
    chosen: _Ints = candidates[np.arange(len(topic)), fit.argmax(axis=1)]
    return chosen


def _buy_again(
    item: _Ints, user: _Ints, basket: _Ints, offsets: _Ints, rng: np.random.Generator
) -> _Ints:
    """Some events repeat one of the user's earlier baskets, as often as is the user's habit."""
    habit = rng.beta(1.5, 6.0, size=len(offsets) - 1)[user]
    opening = np.searchsorted(basket, basket)  # first event of the event's basket
    before = opening - offsets[:-1][user]
    again = (rng.random(len(item)) < habit) & (before > 0)
    source = offsets[:-1][user] + (rng.random(len(item)) * before).astype(np.int64)
    source = np.where(again, source, np.arange(len(item)))
    # What is bought again may itself have been: follow to the first purchase.
    while not np.array_equal(source, source[source]):
        source = source[source]
    return item[source]


def _make_catalogue(world: _World, index: _Ints, rng: np.random.Generator) -> pl.DataFrame:
    topics = [
        (department, motifs.split(), things.split("|"))
        for department, group in _TOPICS.items()
        for motifs, things in group.values()
    ]
    styles = [(name, words.split("|")) for name, words in _STYLES.items()]
    draws = rng.random((len(world.topic), 4))
    rows = []
    for topic, style, (a, b, c, d) in zip(world.topic, world.style, draws, strict=True):
        department, motifs, things = topics[topic]
        name, words = styles[style]
        parts = (
            _SIZES[int(a * len(_SIZES))],
            words[int(b * len(words))],
            motifs[int(c * len(motifs))],
            things[int(d * len(things))],
        )
        rows.append((" ".join(filter(None, parts)), department, [name]))
    order = np.argsort(index)
    text, category, tags = zip(*(rows[place] for place in order), strict=True)
    return pl.DataFrame(
        {
            "item_id": _ids("item", len(rows)),
            "text": text,
            "category": category,
            "price": world.price[order],
            "tags": tags,
        },
        schema_overrides={"tags": pl.List(pl.String)},
    )
