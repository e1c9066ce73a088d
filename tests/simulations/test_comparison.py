from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from fedprofile.common.config import load_config
from fedprofile.common.items import COOCCURRENCE_BLOCK, ID_BLOCK, ItemTable
from fedprofile.simulations import comparison


@dataclass(frozen=True)
class Trained:
    """What a population is asked for."""

    histories: str
    keys: None = None
    table: None = None
    users: None = None


CHOOSING = SimpleNamespace(take=lambda _: "before validation")


@pytest.fixture
def centrally(monkeypatch):
    """The epoch that central training ends with, and how many it took, of made-up qualities."""

    def run(quality_of, *, item_ids=False, steps=50, refitted=False):
        taken = []

        def train_centrally(weights, histories, **__):
            assert weights == "by what is known", "the federation begins so, too"
            for epoch in count(1):
                taken.append(histories)
                yield steps * epoch, epoch

        known = SimpleNamespace(
            fill=lambda table: table,
            begin=lambda *_: "by what is known",
            long_run=None,
            current=None,
        )
        monkeypatch.setattr(comparison, "train_centrally", train_centrally)
        monkeypatch.setattr(comparison, "statistics_time", lambda *_: 0)
        monkeypatch.setattr(comparison, "exact_statistics", lambda *_, **__: known)
        # Weights stand for their epoch.
        monkeypatch.setattr(comparison, "EncoderScorer", lambda _, weights, *__: weights)
        monkeypatch.setattr(comparison, "mean_ndcg", lambda epoch, *_, **__: quality_of(epoch))
        config = load_config(None, {"model": {"item_ids": item_ids}})
        split = SimpleNamespace(
            validation=None, refitted=refitted, choosing=CHOOSING, validation_time=0
        )
        ceiling = comparison._central(config, Trained("all"), None, nn.Module(), split)
        assert ceiling.settings == f"epoch {ceiling.scorer}"
        assert taken.count("before validation") == (len(taken) - ceiling.scorer) * refitted
        return ceiling.scorer, len(taken)

    return run


@pytest.mark.parametrize(
    ("best", "taken"),
    [(1, 6), (4, 6), (5, 7), (9, 11)],  # at least six, and two without a better one
)
def test_the_ceiling_is_the_best_epoch_and_stops_where_no_more_helps(centrally, best, taken):
    assert centrally(lambda epoch: -abs(epoch - best) / 100 + 0.5) == (best, taken)


def test_a_refitted_ceiling_takes_the_epochs_that_were_best_without_the_validation_part(centrally):
    assert centrally(lambda epoch: -abs(epoch - 4) / 100 + 0.5, refitted=True) == (4, 6 + 4)


def test_a_ceiling_with_ids_waits_for_a_plateau_to_end(centrally):
    def risen(epoch):
        return 0.01 if epoch < 9 else 0.2 - abs(epoch - 12) / 100

    assert centrally(risen, item_ids=True) == (12, 14)
    assert centrally(risen) == (1, 6)


def test_a_ceiling_without_a_validation_part_is_the_last_epoch_looked_at(centrally):
    assert centrally(lambda _: None) == (6, 6)
    assert centrally(lambda _: None, item_ids=True) == (10, 10)  # of 50 steps each


def test_a_ceiling_that_always_gains_ends(centrally):
    assert centrally(lambda epoch: epoch / 1000) == (100, 100)


def table(**blocks):
    return ItemTable(np.ones((3, 4), np.float32), ("a", "b", "c"), ((),) * 3, blocks)


@pytest.mark.parametrize(
    ("items", "content"),
    [
        (table(**{ID_BLOCK: (0, 2), COOCCURRENCE_BLOCK: (2, 4)}), False),
        (table(**{ID_BLOCK: (0, 2), "category": (2, 4)}), True),
        (table(text=(0, 4)), True),
    ],
)
def test_baselines_that_have_nothing_to_go_by_are_left_out_or_not_counted(
    monkeypatch, items, content
):
    asked = {}

    def tuned(split, table, **options):
        asked.update(options)
        return {"popularity": None, "personal-frequency": None}

    monkeypatch.setattr(comparison, "tuned_baselines", tuned)
    makers = comparison.references(
        load_config(None),
        split=None,
        population=SimpleNamespace(table=items),
        trainer=None,
        encoder=None,
    )
    popularity, frequency = makers[comparison.CLASSICAL]()
    assert asked["without"] == (() if content else ("content-cosine",))
    assert (popularity.aside, frequency.aside) == ("", "new items stand in popularity's order")
    [alone] = makers["local only"]()
    assert bool(alone.aside) is not content


def test_what_a_comparison_goes_without_is_said():
    config = load_config(None)
    assert not [*comparison.left_out(config, 300, True)]
    [note] = comparison.left_out(config, 300, False)
    assert note.startswith("Content cosine is not among the baselines")
    [note] = comparison.left_out(config, 10_001, True)
    assert note.startswith("EASE is not among")
    ids = load_config(None, {"model": {"item_ids": True}})
    [note] = comparison.left_out(ids, 300, True)
    assert "on each device alone" in note
    for section in ({"baselines": False}, {"split": "none"}):
        assert not [*comparison.left_out(load_config(None, {"evaluation": section}), 300, False)]
