"""The encoder without a federation: what its training leaves out, and what its lists don't."""

from itertools import islice

import numpy as np
import pytest
import torch

from fedprofile.client.local_training import Trainer
from fedprofile.common.encoder import MeanEncoder
from fedprofile.simulations.models import EncoderScorer, LocalOnly, train_centrally

SHARE = 0.4


@pytest.fixture(scope="module")
def town(build_town):
    return build_town()


def settings_of(town, dropout):
    return town.config.training.model_copy(update={"dropout": dropout})


def centrally(town, dropout):
    """Weights after two epochs."""
    epochs = train_centrally(
        dict(town.encoder.named_parameters()),
        town.population.histories,
        keys=town.population.keys,
        table=town.population.table,
        prior=np.zeros(town.population.table.n_items, dtype=np.float32),
        model=town.config.model,
        training=settings_of(town, dropout),
        trainer=town.trainer,
        seed=3,
    )
    [*_, (steps, weights)] = islice(epochs, 2)
    assert steps == 2
    return weights


def flat(weights):
    return torch.cat([w.flatten() for w in weights.values()])


def local_only(town, dropout):
    return LocalOnly(
        town.encoder,
        town.population.table,
        town.config.model,
        settings_of(town, dropout),
        town.trainer,
    )


@pytest.fixture
def trained(monkeypatch):
    """What the trainer was told, call by call."""
    told = []
    for name in ("clipped_sum", "local_weights"):
        real = getattr(Trainer, name)

        def watched(self, weights, examples, prior, training, real=real):
            told.append(training)
            return real(self, weights, examples, prior, training)

        monkeypatch.setattr(Trainer, name, watched)
    return told


def test_the_reference_leaves_out_what_devices_do_by_the_seed_of_each_step(town, trained):
    whole, some, again = (flat(centrally(town, share)) for share in (0.0, SHARE, SHARE))
    assert torch.equal(some, again)
    assert float((whole - some).norm()) > 0.01 * float(whole.norm())
    assert [training.dropout for training in trained] == [0.0] * 2 + [SHARE] * 4
    assert len({training.seed for training in trained[:2]}) == 2
    assert [t.seed for t in trained[:2]] == [t.seed for t in trained[2:4]]


def test_devices_on_their_own_leave_it_out_too(town, trained):
    histories, now = town.population.histories, np.zeros(town.population.size, dtype=np.int64)
    whole, some = (local_only(town, share).scores(histories, now) for share in (0.0, SHARE))
    assert not np.allclose(whole, some)
    assert [training.dropout for training in trained] == [0.0, SHARE]


def test_lists_are_made_with_the_whole_model(town, monkeypatch):
    weights = centrally(town, SHARE)
    histories, now = town.population.histories, np.zeros(town.population.size, dtype=np.int64)
    prior = np.zeros(town.population.table.n_items, dtype=np.float32)
    scorer = EncoderScorer(town.encoder, weights, town.population.table, prior, town.config.model)
    given, forward = [], MeanEncoder.forward

    def watched(self, inputs, masks=None):
        given.append((masks, torch.is_grad_enabled()))
        return forward(self, inputs, masks)

    monkeypatch.setattr(MeanEncoder, "forward", watched)
    np.testing.assert_array_equal(scorer.scores(histories, now), scorer.scores(histories, now))
    assert given
    assert all(masks is None for masks, _ in given)
    given.clear()
    local_only(town, SHARE).scores(histories, now)
    # Gradients are taken where it trains, and nowhere else.
    assert {(masks is None, training) for masks, training in given} == {
        (True, False),
        (False, True),
    }
