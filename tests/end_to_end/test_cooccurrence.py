"""A catalogue of bare ids: what is taken together is released, and every list is made by it."""

import datetime as dt
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedprofile.audit.checkpoints import Checkpoint
from fedprofile.audit.run_checks import _check_items, _checkpoint_faults
from fedprofile.client.answers import RecommendRequest
from fedprofile.client.device import Device
from fedprofile.client.device_config import DeviceConfig
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.examples import build_examples
from fedprofile.client.fit import answer
from fedprofile.client.interactions import Interaction
from fedprofile.client.model_bundle import current_bundle
from fedprofile.client.model_delivery import join_server, keep_release
from fedprofile.client.node_keys import ensure_node_key
from fedprofile.client.outbox import Outbox, name_of
from fedprofile.common.config import RunConfig, StatisticsConfig
from fedprofile.common.items import COOCCURRENCE_BLOCK, ItemTable
from fedprofile.common.ledger_entries import Chain, Reserve, read_chain, read_ledger
from fedprofile.common.messages import Binding, TrainTask, read_update, train_message
from fedprofile.common.server_bundle import ServerBundle
from fedprofile.common.signing import SigningKey
from fedprofile.common.successors import Successors
from fedprofile.common.user_level_optimizer import release_sum
from fedprofile.common.weights import hash_of_weights
from fedprofile.server import app, budget, lifetimes
from fedprofile.server.relations import item_relations
from fedprofile.server.releases import Releases
from fedprofile.server.setup import create_server
from fedprofile.server.statistics import ItemStatistics
from fedprofile.simulations import membership
from fedprofile.simulations.membership import attack_membership
from fedprofile.simulations.simulate import read
from fedprofile.simulations.trained import find_run, load_scorer

CONFIG = """
[data]
path = "sequences"
synthetic_users = 200
synthetic_items = 40
[model]
width = 8
window = 8
half_lives_days = [30]
[items]
dimension = 8
[training]
rounds = 2
negatives = 8
cohort = 30
[privacy]
epsilon = 8
split.popularity = 0.1
split.cooccurrence = 0.8
noise_multiplier = 20
[evaluation]
bootstrap_samples = 0
"""


def told(found):
    assert found.code == 0, found.err
    return json.loads(found.out.splitlines()[-1])


@pytest.mark.slow
def test_a_run_over_bare_ids_is_ranked_by_what_goes_together(fedprofile, tmp_path, monkeypatch):
    (tmp_path / "ids.toml").write_text(CONFIG, encoding="utf-8")
    planned = told(fedprofile("simulate", "--config", "ids.toml", "--plan", "--json"))
    tasks = [release["task"] for release in planned["releases"]]
    assert tasks == ["statistics/popularity", "statistics/cooccurrence", "training"]
    ran = fedprofile("simulate", "--config", "ids.toml", "--out", "run", "--json")
    told(ran)
    assert "rounds add little" in " ".join(ran.err.split())
    entries = read_ledger(tmp_path / "run" / "ledger.jsonl")
    reserves = [entry for entry in entries if isinstance(entry, Reserve)]
    assert [entry.task for entry in reserves] == [*tasks, "training"]
    for release, entry in zip(planned["releases"], reserves, strict=False):
        assert entry.mechanism.noise_multiplier == release["noise_multiplier"]
    served = ItemTable.load(tmp_path / "run" / "items.safetensors")
    start, stop = served.blocks[COOCCURRENCE_BLOCK]
    assert stop - start == 64
    assert served.vectors[:, start:stop].any()
    folder, config = find_run(tmp_path / "run")
    log, _, population = read(config)
    scorer = load_scorer(folder, config, log, population)
    np.testing.assert_array_equal(scorer.table.vectors, served.vectors[:, :stop])
    # Membership is inferred from losses on the items as training read them.
    statistics = ItemStatistics(scorer.prior, scorer.prior, served.vectors[:, start:stop])
    seen = []

    def keep(*arguments, vectors, **settings):
        seen.append(vectors)
        return build_examples(*arguments, vectors=vectors, **settings)

    monkeypatch.setattr(membership, "build_examples", keep)
    trainer = population.trainer(threads=1, compiled=False)
    told_losses = []

    def losses(*arguments):
        told_losses.append(trainer.losses(*arguments))
        return told_losses[-1]

    def attack():
        told_losses.clear()
        attack_membership(
            SimpleNamespace(
                histories=population.histories,
                outsiders=population.histories,
                table=population.table,
                model=config.model,
            ),
            trainer=SimpleNamespace(losses=losses),
            training=config.training,
            before=scorer.weights,
            after=scorer.weights,
            statistics=statistics,
            seed=0,
        )
        return np.concatenate(told_losses)

    at_once = attack()
    # Users that are read in parts have the losses they have together.
    monkeypatch.setattr(membership, "_AT_ONCE", 30)
    np.testing.assert_allclose(attack(), at_once, rtol=1e-4)
    assert len(told_losses) > 4
    assert seen
    assert all(np.array_equal(vectors, scorer.table.vectors) for vectors in seen)
    # Whatever reads the run, also on a device, has the vectors that it was made with.
    told(fedprofile("replay", "run", "--json"))
    compared = told(fedprofile("strategies", "run", "--json"))["strategies"]
    # Users count as such, too, where no item has a tag.
    assert all(strategy["users"] > 0 for strategy in compared)
    names = [
        "collaborative",
        "collaborative, normalised",
        "sequential",
        "neural",
        "hybrid",
        "+ diversity 0.2",
        "+ diversity 0.5",
    ]
    # And what a log of bare ids has nothing for isn't there.
    assert [strategy["name"] for strategy in compared] == names
    assert fedprofile("device", "init", "phone", "--model", "run").code == 0
    told(fedprofile("device", "record", "phone", "--item", served.ids[0], "--json"))
    ranking = told(fedprofile("device", "recommend", "phone", "--top-k", "3", "--json"))
    assert len(ranking["items"]) == 3


@pytest.fixture
def exactly(monkeypatch):
    """What is made of a release is as if it had no noise: of three devices nothing else would be left."""
    for module in (app, budget, lifetimes):
        monkeypatch.setattr(module, "head_size", lambda n_items, _, **__: n_items)
    monkeypatch.setattr(budget, "vectors_size", lambda head, _: head)

    def without_noise(noisy, *, mechanism, **known):
        return item_relations(noisy, mechanism=replace(mechanism, noise_multiplier=0.0), **known)

    monkeypatch.setattr(app, "item_relations", without_noise)


@pytest.mark.usefixtures("exactly")
def test_a_server_tells_what_goes_with_what_and_a_device_ranks_by_it(
    tmp_path, made_server, serve, monkeypatch
):
    def without_noise(summed, *, mechanism, noise):
        found = release_sum(summed, mechanism=mechanism, noise=noise)
        return {name: summed[name].double() for name in found}

    monkeypatch.setattr(app, "release_sum", without_noise)
    statistics = StatisticsConfig(as_of=dt.date(2026, 1, 1), whole_histories=True)
    config = made_server.config.model_copy(update={"statistics": statistics})
    folder = create_server(tmp_path / "server", config, items=None)
    serve(folder)
    device = DeviceFolder.create(tmp_path / "device", DeviceConfig(name="device"))
    join_server(device, folder.bundle)
    before = current_bundle(device)
    assert before.public.whole
    assert not before.served.successors
    release = Releases(folder, SigningKey.load(folder.signing_key)).load()
    keep_release(device, ServerBundle.load(device.server), release)
    model = current_bundle(device)
    assert (model.public.whole, model.served.whole) == (True, True)
    first, second = model.served.successors.pairs[model.served.successors.chances.argmax()]
    with Device(device) as opened:
        taken = Interaction(
            id="1", item=model.public.ids[first], time=1_700_000_000, event=model.event_types[0]
        )
        opened.record([taken])
        request = RecommendRequest(top_k=9, explain=True, strategy="collaborative")
        told = opened.recommend(request).items
        [twin] = [one for one in told if one.item == model.public.ids[second]]
        assert [part.item for part in twin.together] == [model.public.ids[first]]
        assert all(not one.follows for one in told)


@pytest.mark.usefixtures("exactly")
def test_a_server_hands_the_vectors_on_and_a_device_ranks_by_them(tmp_path, made_server, serve):
    statistics = StatisticsConfig(as_of=dt.date(2026, 1, 1), cooccurrence=6)
    config = made_server.config.model_copy(update={"statistics": statistics})
    folder = create_server(tmp_path / "server", config, items=None)
    serve(folder)
    device = DeviceFolder.create(tmp_path / "device", DeviceConfig(name="device"))
    join_server(device, folder.bundle)
    before = current_bundle(device).public
    assert before.blocks[COOCCURRENCE_BLOCK] == (before.dimension - 6, before.dimension)
    assert not before.vectors[:, -6:].any()
    releases = Releases(folder, SigningKey.load(folder.signing_key))
    bundle = ServerBundle.load(device.server)
    keep_release(device, bundle, releases.load())
    model = current_bundle(device)
    np.testing.assert_array_equal(model.public.vectors[:, :-6], before.vectors[:, :-6])
    lengths = np.linalg.norm(model.public.vectors[:, -6:], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    with Device(device) as opened:
        taken = Interaction(
            id="1", item=model.public.ids[0], time=1_700_000_000, event=bundle.facts.event_types[0]
        )
        opened.record([taken])
        assert opened.status().learned == 1
        vector = np.array(opened.profile().vector)
    # U of one event leans towards what is taken with its item: the block has a gain of its own.
    assert vector[-7:-1] @ model.public.vectors[0, -6:] > 0.5

    # It trains on, by the vectors that come with the task.
    weights = load_file(bundle.model)
    table = bundle.items
    task = TrainTask(
        binding=Binding(
            run=bundle.facts.federation,
            round=3,
            release=9,
            items=table.content_hash,
            model=hash_of_weights(weights),
        ),
        devices=np.array([0]),
        weights=weights,
        prior=np.zeros(table.n_items, dtype=np.float32),
        vectors=model.public.vectors[:, -6:],
        steps=1,
        learning_rate=0.5,
        negatives=4,
        dropout=0.0,
        new_targets_only=True,
        clip_norm=0.2,
        noise_multiplier=4.0,
        seed=3,
    )
    message = train_message(7, task)
    message.metadata.__dict__["_message_id"] = "9" * 64
    ensure_node_key(device)
    answer(device, message)
    made = Outbox(device.outbox).answer(name_of(task.binding), message)
    shapes = {name: weight.shape for name, weight in weights.items()}
    assert read_update(made, binding=task.binding, shapes=shapes).devices == 1


@pytest.mark.parametrize(("preset", "columns"), [("shop", 0), ("video", 64), ("generic", 64)])
def test_names_of_goods_tell_it_and_titles_do_not(tmp_path, preset, columns):
    rows = "".join(f"u{n % 9},i{n % 7},{n * 90_000},view,title {n % 7}\n" for n in range(60))
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp,event,text\n" + rows)
    settings = {
        "data": {"path": str(log), "preset": preset},
        "evaluation": {"split": "none"},
        "privacy": {"enabled": False},  # 9 users have no budget for it
    }
    _, _, population = read(RunConfig.model_validate(settings))
    assert "text" in population.table.blocks
    assert population.table.width_of(COOCCURRENCE_BLOCK) == columns
    assert population.table.whole == (preset == "shop")


@pytest.mark.slow
def test_what_follows_what_is_told_by_a_release_and_ranked_by_on_a_device(fedprofile, tmp_path):
    """From the log to the list of a device; the ledger names what was told, and an audit compares it."""
    config = CONFIG.replace("synthetic_users = 200", "synthetic_users = 600")
    (tmp_path / "ids.toml").write_text(config.replace("rounds = 2", "rounds = 0"), encoding="utf-8")
    open_run = ("--config", "ids.toml", "--no-privacy", "--json")
    told(fedprofile("simulate", *open_run, "--out", "run"))
    path = tmp_path / "run" / "items.safetensors"
    served = ItemTable.load(path)
    assert len(served.successors) > 20
    folder, config = find_run(tmp_path / "run")
    log, _, population = read(config)
    assert len(load_scorer(folder, config, log, population).table.successors) > 20
    verified = fedprofile("audit", "verify", "run")
    assert "items" in verified.out

    assert fedprofile("device", "init", "phone", "--model", "run").code == 0
    pair = served.successors.chances.argmax()
    item, then = (served.ids[place] for place in served.successors.pairs[pair])
    for number, taken in enumerate((item, served.ids[0], served.ids[1], item)):
        when = ("--time", str(1_700_000_000 + number))
        told(fedprofile("device", "record", "phone", "--item", taken, *when, "--json"))
    ranking = told(fedprofile("device", "recommend", "phone", "--top-k", "3", "--json"))
    assert then in [entry["item"] for entry in ranking["items"]]

    # Told more strongly than it was released, with a hash to match.
    stronger = Successors(served.successors.pairs, served.successors.chances * np.float32(0.5))
    replace(served, successors=stronger).save(path)
    found = fedprofile("audit", "verify", "run", "--json")
    assert found.code == 1
    findings = {finding["check"]: finding for finding in json.loads(found.out)["findings"]}
    assert findings["items"]["outcome"] == "fails"
    assert "wasn't released" in findings["items"]["what"]

    # Nor may it be told of, or kept, where the ledger has no such release.
    empty = Chain()
    empty.entries = read_chain(tmp_path / "run" / "ledger.jsonl").entries[:1]
    assert _check_items(path, empty).outcome == "fails"
    checkpoint = Checkpoint.last(tmp_path / "run" / "checkpoints")
    faults = [what for _, what in _checkpoint_faults(checkpoint, empty)]
    assert "it holds statistics/cooccurrence, and the ledger has no release of it" in faults


@pytest.mark.slow
@pytest.mark.parametrize("private", [False, True])
def test_what_goes_with_what_is_told_of_goods_and_ranked_by_on_a_device(
    fedprofile, tmp_path, private
):
    """Pairs of things that are held together for years, and hardly ever taken one after the other."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(400):
        kinds = rng.choice(20, 4, replace=False)
        wanted = [*(f"cup-{kind}" for kind in kinds), *(f"皿-{kind}" for kind in kinds)]
        for visit, item in enumerate(rng.permutation(wanted)):
            rows.append(f"u{user},{item},{1_700_000_000 + 9_000_000 * visit + 60 * user},buy")
    log = tmp_path / "goods.csv"
    log.write_text("user_id,item_id,timestamp,event\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "goods.toml").write_text(
        """
[data]
path = "goods.csv"
preset = "shop"
[model]
width = 8
window = 8
half_lives_days = [30]
[items]
dimension = 8
[statistics]
whole_histories = true
[training]
rounds = 0
[privacy]
epsilon = 30
delta = 1e-4
[evaluation]
bootstrap_samples = 0
split = "none"
""",
        encoding="utf-8",
    )
    open_run = () if private else ("--no-privacy",)
    planned = told(fedprofile("simulate", "--config", "goods.toml", *open_run, "--plan", "--json"))
    assert planned["releases"][1]["upload_bytes"] == 4 * 40 * 39 // 2
    ran = fedprofile("simulate", "--config", "goods.toml", *open_run, "--out", "run", "--json")
    told(ran)
    path = tmp_path / "run" / "items.safetensors"
    served = ItemTable.load(path)
    assert served.whole
    place = {item: number for number, item in enumerate(served.ids)}
    chances = np.zeros((40, 40))
    chances[tuple(served.successors.pairs.T)] = served.successors.chances
    twins = [(place[f"cup-{kind}"], place[f"皿-{kind}"]) for kind in range(20)]
    assert np.mean([chances[one].argmax() == other for one, other in twins]) > 0.9
    verified = fedprofile("audit", "verify", "run", "--json")
    findings = {finding["check"]: finding for finding in json.loads(verified.out)["findings"]}
    assert findings["items"]["outcome"] == "holds"

    assert fedprofile("device", "init", "phone", "--model", "run").code == 0
    # The first thing is far behind a window of eight events.
    taken = ["cup-3", *(f"{kind}-{n}" for n in (5, 6, 7, 8, 9) for kind in ("cup", "皿"))]
    for number, item in enumerate(taken):
        when = ("--time", str(1_700_000_000 + 86_400 * number))
        told(fedprofile("device", "record", "phone", "--item", item, *when, "--json"))
    asked = ("device", "recommend", "phone", "--top-k", "3", "--explain")
    for strategy in ("collaborative", "hybrid"):
        ranking = told(fedprofile(*asked, "--strategy", strategy, "--json"))["items"]
        [twin] = [entry for entry in ranking if entry["item"] == "皿-3"]
        assert twin["together"][0]["item"] == "cup-3"
        assert not twin["follows"]
    shown = fedprofile(*asked, "--strategy", "collaborative")
    assert "goes with cup-3" in " ".join(shown.out.split())
    refused = fedprofile(*asked, "--strategy", "sequential")
    assert refused.code != 0
    assert "ask for collaborative" in " ".join(refused.err.split())

    # Told of close pairs, the same numbers are another table.
    replace(served, whole=False).save(path)
    found = fedprofile("audit", "verify", "run", "--json")
    findings = {finding["check"]: finding for finding in json.loads(found.out)["findings"]}
    assert findings["items"]["outcome"] == "fails"
