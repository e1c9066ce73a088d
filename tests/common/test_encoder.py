import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch.func import functional_call, vmap

from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import EncoderInputs, build_encoder

N_ITEMS, N_TYPES, K, SCALES = 40, 3, 12, 2
BLOCKS = {"text": (0, 8), "price": (8, 12)}
ENCODERS = ["transformer", "gru", "mean", "dense"]
# What reads no window has no use for vectors that are trained for each item.
MODELS = [(kind, ids) for kind in ENCODERS for ids in (False, True) if kind != "dense" or not ids]


def encoder(kind, *, item_ids=False, trained=True, **changes):
    config = ModelConfig(
        encoder=kind,
        width=8,
        layers=2,
        half_lives_days=(2.0, 30.0),
        half_lives_events=(),
        item_ids=item_ids,
        item_id_dimension=5,
        **changes,
    )
    built = build_encoder(config, blocks=BLOCKS, n_items=N_ITEMS, n_types=N_TYPES, seed=3)
    if trained:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in built.parameters():
                p += 0.3 * torch.randn(p.shape, generator=generator)
    return built


def inputs(*, lead=(), length=9, queries=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*lead, *shape, generator=generator)

    return EncoderInputs(
        vectors=normal(length, K),
        rows=torch.randint(N_ITEMS, (*lead, length), generator=generator),
        gaps=normal(length).abs(),
        types=torch.randint(N_TYPES, (*lead, length), generator=generator),
        weights=normal(length).abs() + 0.1,
        positions=torch.randint(length + 1, (*lead, queries), generator=generator),
        sums=normal(queries, SCALES, K),
    )


@pytest.mark.parametrize("kind", [kind for kind, ids in MODELS if ids])
def test_untrained_ids_are_read_where_nothing_else_is_known(kind):
    # Without content the first step must already tell windows apart: from zero it wouldn't get away.
    model = encoder(kind, item_ids=True, trained=False)
    asked = inputs()
    bare = asked._replace(vectors=0 * asked.vectors, sums=0 * asked.sums)
    steps = []
    for rows in (bare.rows, (bare.rows + 7) % N_ITEMS):
        profile = model(bare._replace(rows=rows))[..., K:]
        steps.append(torch.autograd.grad(profile.sum(), model.id_out.weight)[0])
    assert (steps[0] - steps[1]).norm() > 0.05 * steps[0].norm() > 0


@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
def test_later_events_never_change_an_earlier_profile(kind, item_ids):
    model, before, other = encoder(kind, item_ids=item_ids), inputs(), inputs(seed=1)
    for known in range(10):
        asked = before._replace(positions=torch.full((4,), known))
        changed = asked._replace(
            **{
                name: torch.cat([getattr(before, name)[:known], getattr(other, name)[known:]])
                for name in ("vectors", "rows", "gaps", "types", "weights")
            }
        )
        torch.testing.assert_close(model(changed), model(asked), rtol=0, atol=1e-6)
        if known and model.reads_window:
            # ... while the last known event does count, or nothing was tested.
            vectors = before.vectors.clone()
            vectors[known - 1] = other.vectors[known - 1]
            assert not torch.allclose(model(asked._replace(vectors=vectors)), model(asked))


def test_the_dense_encoder_learns_from_interests_alone():
    model, before, other = encoder("dense"), inputs(), inputs(seed=1)
    assert torch.equal(model(other._replace(sums=before.sums)), model(before))
    assert not torch.allclose(model(before._replace(sums=other.sums)), model(before))
    names = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert names == {"adapter", "gains", "norm", "out"}


def test_the_dense_encoder_has_no_use_for_trained_items():
    with pytest.raises(ValueError, match="'dense' reads no item by itself"):
        encoder("dense", item_ids=True)


@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
def test_padding_changes_nothing(kind, item_ids):
    model, plain = encoder(kind, item_ids=item_ids), inputs()
    pad = torch.nn.functional.pad
    padded = EncoderInputs(
        vectors=pad(plain.vectors, (0, 0, 0, 5)),
        rows=pad(plain.rows, (0, 5)),
        gaps=pad(plain.gaps, (0, 5), value=7.0),
        types=pad(plain.types, (0, 5)),
        weights=pad(plain.weights, (0, 5)),
        positions=pad(plain.positions, (0, 3)),
        sums=pad(plain.sums, (0, 0, 0, 0, 0, 3)),
    )
    torch.testing.assert_close(model(padded)[:4], model(plain), rtol=1e-5, atol=1e-6)


def masks_of(model, rows=9, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(2, (model.places, rows, 8), generator=generator)


def with_hooks(model, masks):
    """A copy that leaves the same out by hooks on its layers, and takes no masks."""
    hooked, rest = copy.deepcopy(model), iter(masks[2:])

    def left_out(mask):
        return lambda numbers: numbers * mask[: numbers.shape[-2]]

    def after(layer, mask):
        drop = left_out(mask)
        layer.register_forward_hook(lambda _, given, found: drop(found))

    def before(layer, mask):
        drop = left_out(mask)
        layer.register_forward_pre_hook(lambda _, given: (drop(given[0]),))

    hidden = masks[0]
    if hooked.reads_window:
        read, drop, hidden = hooked._read, left_out(masks[0]), masks[1]
        hooked._read = lambda tokens, weights, _: read(drop(tokens), weights, None)
    before(hooked.out, hidden)
    if hooked.item_ids is not None:
        before(hooked.id_out, hidden)
    for layer in getattr(hooked, "layers", ()):
        after(layer.project, next(rest))
        after(layer.narrow, next(rest))
    assert next(rest, None) is None  # all places were met
    return hooked


@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
def test_masks_leave_out_what_hooks_leave_out(kind, item_ids):
    model, asked = encoder(kind, item_ids=item_ids), inputs()
    masks = masks_of(model)
    torch.testing.assert_close(model(asked, masks), with_hooks(model, masks)(asked))
    # Every place counts, or there would be nothing to test.
    for place in range(model.places):
        other = masks.clone()
        other[place] = 2.0 - other[place]
        assert not torch.allclose(model(asked, other), model(asked, masks))


@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
def test_masks_of_ones_change_nothing(kind, item_ids):
    model, asked = encoder(kind, item_ids=item_ids), inputs()
    assert torch.equal(model(asked, torch.ones(model.places, 9, 8)), model(asked))


@pytest.mark.parametrize("kind", ENCODERS)
def test_masks_leave_out_the_same_wherever_a_device_is_padded(kind):
    model, plain = encoder(kind), inputs()
    masks, pad = masks_of(model, rows=14), torch.nn.functional.pad
    padded = EncoderInputs(
        vectors=pad(plain.vectors, (0, 0, 0, 5)),
        rows=pad(plain.rows, (0, 5)),
        gaps=pad(plain.gaps, (0, 5)),
        types=pad(plain.types, (0, 5)),
        weights=pad(plain.weights, (0, 5)),
        positions=pad(plain.positions, (0, 3)),
        sums=pad(plain.sums, (0, 0, 0, 0, 0, 3)),
    )
    expected = model(plain, masks[:, :9])
    torch.testing.assert_close(model(padded, masks)[:4], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_left_out_of_the_last_layer_is_a_smaller_model(kind):
    model, asked = encoder(kind), inputs()
    masks = torch.ones(model.places, 9, 8)
    masks[min(1, model.places - 1), :, [1, 4, 5]] = 0.0
    smaller = copy.deepcopy(model)
    with torch.no_grad():
        smaller.out.weight[:, [1, 4, 5]] = 0.0
    torch.testing.assert_close(model(asked, masks), smaller(asked))


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_empty_window_leaves_the_decayed_sums(kind):
    model = encoder(kind)
    nothing = inputs(queries=2)._replace(
        vectors=torch.zeros(4, K),
        rows=torch.zeros(4, dtype=torch.int64),
        gaps=torch.zeros(4),
        types=torch.zeros(4, dtype=torch.int64),
        weights=torch.zeros(4),
        positions=torch.zeros(2, dtype=torch.int64),
    )
    assert torch.isfinite(model(nothing)).all()
    blank = model(nothing._replace(sums=torch.zeros(2, SCALES, K)))
    torch.testing.assert_close(blank[0], blank[1])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(MODELS), st.integers(0, 2**16))
def test_the_untrained_encoder_ranks_by_content_cosine(kind_and_ids, seed):
    kind, item_ids = kind_and_ids
    model, asked = encoder(kind, item_ids=item_ids, trained=False), inputs(seed=seed)
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(N_ITEMS, K))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    profile = model(asked).detach().double().numpy()
    ids = np.zeros((N_ITEMS, 0))
    if item_ids:
        ids = model.item_ids.weight.detach().double().numpy()
    sums = asked.sums.double().numpy()
    interest = (sums / np.linalg.norm(sums, axis=-1, keepdims=True)).mean(axis=1)
    cosine = interest @ items.T / np.linalg.norm(interest, axis=-1, keepdims=True)
    scores = profile @ np.hstack([items, ids]).T
    np.testing.assert_array_equal(np.argsort(-scores, axis=1), np.argsort(-cosine, axis=1))


@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
def test_vmap_over_weights_equals_one_model_at_a_time(kind, item_ids):
    model, batch = encoder(kind, item_ids=item_ids), inputs(lead=(3,))
    generator = torch.Generator().manual_seed(1)
    stacked = {
        name: p.detach() + 0.1 * torch.randn(3, *p.shape, generator=generator)
        for name, p in model.named_parameters()
    }
    together = vmap(lambda w, x: functional_call(model, w, (x,)))(stacked, batch)
    for device in range(3):
        alone = functional_call(
            model,
            {name: w[device] for name, w in stacked.items()},
            (EncoderInputs(*(column[device] for column in batch)),),
        )
        torch.testing.assert_close(together[device], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
def test_opacus_per_sample_gradients_equal_autograd(kind, item_ids, dropout):
    model, batch = encoder(kind, item_ids=item_ids), inputs(lead=(3,))
    masks = masks_of(model) if dropout else None
    goal = torch.randn(model(batch).shape, generator=torch.Generator().manual_seed(2))
    expected = []
    for device in range(3):
        alone = EncoderInputs(*(column[device] for column in batch))
        loss = (model(alone, masks) * goal[device]).square().sum()
        expected.append(torch.autograd.grad(loss, tuple(model.parameters())))
    hooked = GradSampleModule(model, loss_reduction="sum")
    (hooked(batch, masks) * goal).square().sum().backward()
    for index, (name, p) in enumerate(model.named_parameters()):
        per_sample = torch.stack([gradients[index] for gradients in expected])
        torch.testing.assert_close(p.grad_sample, per_sample, rtol=1e-4, atol=1e-4, msg=name)


def test_building_leaves_torch_randomness_alone_and_repeats_itself():
    state = torch.random.get_rng_state()
    first, second = encoder("transformer", trained=False), encoder("transformer", trained=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
