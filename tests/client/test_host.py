import logging

import numpy as np
import pytest

from fedprofile.client.app import build_client_app
from fedprofile.client.cooccurrence import together_contribution
from fedprofile.client.lifetime import LifetimeBudget, Terms
from fedprofile.client.local_training import Trainer
from fedprofile.common.errors import MessageError, ReplyRejected
from fedprofile.common.ledger_entries import read_ledger
from fedprofile.common.messages import (
    Binding,
    CooccurrenceTask,
    PopularityTask,
    TrainTask,
    hosting_query,
    popularity_message,
    read_hosting,
    read_update,
    train_message,
)
from fedprofile.simulations.grid import InProcessGrid

FIRST, COUNT = 10, 15


@pytest.fixture(scope="module")
def town(build_town):
    return build_town(n_devices=40)


@pytest.fixture(scope="module")
def host(town):
    return host_of(town, FIRST, COUNT)


def host_of(town, first, count, **named):
    from fedprofile.client.host import DeviceHost

    return DeviceHost(
        town.population.histories.take(np.arange(first, first + count)),
        keys=town.population.keys[first : first + count],
        first=first,
        table=town.population.table,
        model=town.config.model,
        trainer=town.trainer,
        **named,
    )


def binding(town, **changes):
    return Binding(
        **{
            "run": "r",
            "round": 1,
            "release": 4,
            "items": town.population.table.content_hash,
            **changes,
        }
    )


def train_task(town, devices, **changes):
    values = {
        "binding": binding(town),
        "devices": np.asarray(devices, dtype=np.int64),
        "weights": town.initial(),
        "prior": np.zeros(town.population.table.n_items, dtype=np.float32),
        "vectors": np.zeros((town.population.table.n_items, 0), dtype=np.float32),
        "steps": 2,
        "learning_rate": 0.5,
        "negatives": 4,
        "dropout": 0.0,
        "new_targets_only": False,
        "clip_norm": 0.5,
        "noise_multiplier": 1.5,
        "seed": 11,
    }
    return TrainTask(**{**values, **changes})


def popularity_task(town, devices, **changes):
    values = {
        "binding": binding(town, round=0),
        "devices": np.asarray(devices, dtype=np.int64),
        "clip_norm": 1.0,
        "noise_multiplier": 2.5,
        "half_lives_days": (30.0,),
        "now": int(town.population.histories.times.max()),
    }
    return PopularityTask(**{**values, **changes})


def cooccurrence_task(town, devices, **changes):
    values = {
        "binding": binding(town, round=0),
        "devices": np.asarray(devices, dtype=np.int64),
        "head": np.arange(3, 20),
        "clip_norm": 1.0,
        "noise_multiplier": 2.5,
    }
    return CooccurrenceTask(**{**values, **changes})


KINDS = (
    ("train", train_task),
    ("contribute", popularity_task),
    ("contribute", cooccurrence_task),
)


def flat(update):
    return np.concatenate([update.arrays[n].ravel() for n in sorted(update.arrays)]).astype(float)


def dropping_task(town, devices):
    return train_task(town, devices, dropout=0.4)


def test_the_sum_of_a_host_is_that_of_its_devices_wherever_they_are(town, host):
    chosen = [11, 13, 14, 20, 24]
    # Of several lengths: what is left out of a short window doesn't follow from a longer one beside it.
    lengths = town.population.histories.lengths[chosen]
    assert len(set(np.minimum(lengths, town.config.model.window))) > 1
    for work, task in (*KINDS, ("train", dropping_task)):
        together = getattr(host, work)(task(town, chosen))
        assert together.devices == len(chosen)
        alone = [getattr(host_of(town, d, 1), work)(task(town, [d])) for d in chosen]
        assert all(update.norm <= update.clip_norm * 1.0001 for update in alone)
        total = sum(flat(update) for update in alone)
        assert np.linalg.norm(total) > 0
        assert np.linalg.norm(flat(together) - total) <= 1e-5 * np.linalg.norm(total)


def test_a_host_leaves_out_what_the_task_says(town, host):
    whole, some, same, more = (
        flat(host.train(train_task(town, [11, 13, 14], dropout=share)))
        for share in (0.0, 0.2, 0.2, 0.6)
    )
    np.testing.assert_array_equal(some, same)
    for one, other in ((whole, some), (some, more)):
        assert np.linalg.norm(one - other) > 0.01 * np.linalg.norm(whole)


@pytest.mark.parametrize("devices", [[FIRST - 1], [FIRST + COUNT], [-1], [11, 11], [11, 99]])
def test_devices_of_others_and_devices_named_twice_are_refused(town, host, devices):
    for work, task in KINDS:
        with pytest.raises(MessageError, match="not hosted here, or is named twice"):
            getattr(host, work)(task(town, devices))


def test_another_item_table_is_refused(town, host):
    other = binding(town, items="0" * 64)
    for work, task in KINDS:
        with pytest.raises(MessageError, match="another item table"):
            getattr(host, work)(task(town, [11], binding=other))


@pytest.mark.parametrize("head", [[-1, 3], [3, 3], [3, 30]])
def test_pairs_of_items_that_are_not_there_or_there_twice_are_refused(town, host, head):
    with pytest.raises(MessageError, match="an item that isn't there, or one twice"):
        host.contribute(cooccurrence_task(town, [11], head=np.array(head, dtype=np.int64)))


def test_a_table_of_whole_histories_is_answered_by_them(build_town):
    town = build_town(statistics={"whole_histories": True})
    told = host_of(town, 0, 20).contribute(cooccurrence_task(town, [3, 5, 7]))
    expected = together_contribution(
        town.population.histories.take(np.array([3, 5, 7])),
        head=np.arange(3, 20),
        n_items=town.population.table.n_items,
        clip_norm=1.0,
    )
    np.testing.assert_allclose(flat(told), flat(expected), rtol=1e-6)
    assert len(flat(told)) == CooccurrenceTask.numbers(17, whole=True)


@pytest.mark.parametrize(("whole", "most"), [(False, 2_048), (True, 2_896)])
def test_more_items_than_a_device_compares_are_refused(build_town, whole, most):
    statistics = {"whole_histories": True} if whole else {"cooccurrence": 5}
    town = build_town(statistics=statistics)
    host = host_of(town, 0, 20)
    with pytest.raises(MessageError, match=f"names {most + 1:,} items, more than"):
        host.contribute(cooccurrence_task(town, [3], head=np.arange(most + 1)))
    with pytest.raises(MessageError, match="isn't there"):
        host.contribute(cooccurrence_task(town, [3], head=np.arange(most)))


@pytest.mark.parametrize("clip_norm", [float("nan"), -1.0])
def test_no_clip_that_is_none_lets_anything_out(town, host, clip_norm):
    for work, task in KINDS:
        with pytest.raises(Exception, match=r"clip_norm must be above 0|norm|non-finite|clip"):
            getattr(host, work)(task(town, [11, 12, 13], clip_norm=clip_norm))


# --- the app over the host ---------------------------------------------------------------------


def ask(find_host, message):
    grid = InProcessGrid(build_client_app(find_host), nodes=1)
    [node] = grid.get_node_ids()
    [reply] = grid.send_and_receive([message(node)])
    return reply


def test_the_app_answers_each_kind_of_message(town, host):
    def find(context):
        assert context.node_config["partition-id"] == 0
        return host

    assert read_hosting(ask(find, hosting_query)) == range(FIRST, FIRST + COUNT)
    train = train_task(town, [12, 15])
    shapes = {name: weight.shape for name, weight in train.weights.items()}
    reply = ask(find, lambda node: train_message(node, train))
    update = read_update(reply, binding=train.binding, shapes=shapes)
    np.testing.assert_array_equal(flat(update), flat(host.train(train)))
    popularity = popularity_task(town, [12, 15])
    reply = ask(find, lambda node: popularity_message(node, popularity))
    shapes = {"popularity": (2, town.population.table.n_items)}
    update = read_update(reply, binding=popularity.binding, shapes=shapes)
    np.testing.assert_array_equal(flat(update), flat(host.contribute(popularity)))


def test_a_failing_device_says_why_to_its_own_log_only(town, host, caplog):
    def broken(context):
        raise ValueError("bought item 17 twice")

    with caplog.at_level(logging.ERROR):
        reply = ask(broken, lambda node: train_message(node, train_task(town, [12])))
    assert reply.error.reason == "ValueError"
    assert "bought item 17 twice" in caplog.text
    reply = ask(lambda context: host, lambda node: train_message(node, train_task(town, [99])))
    assert reply.error.reason == "MessageError"


# --- lifetime budgets ----------------------------------------------------------------------------


class Budgets:
    """Devices 11 and 13 keep ledgers; the limit of 13 is next to nothing."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, device):
        limit = {11: 50.0, 13: 0.1}.get(device)
        if limit is None:
            return None
        terms = Terms(
            population="town",
            target_epsilon=limit,
            delta=1e-5,
            randomness="seeded",
            code_version="test",
            config_digest="",
        )
        return LifetimeBudget.open(self.folder / f"{device}.jsonl", terms=terms)

    def kinds(self, device):
        return [entry.kind for entry in read_ledger(self.folder / f"{device}.jsonl")]


@pytest.fixture
def thrifty(town, tmp_path):
    return host_of(town, FIRST, COUNT, budget_of=Budgets(tmp_path))


@pytest.mark.parametrize("kind", ["train", "contribute"])
def test_a_device_whose_budget_is_spent_does_not_answer(town, host, thrifty, tmp_path, kind):
    make = train_task if kind == "train" else popularity_task
    got = getattr(thrifty, kind)(make(town, [11, 12, 13, 14]))
    expected = getattr(host, kind)(make(town, [11, 12, 14]))
    assert got.devices == 3
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array)
    assert Budgets(tmp_path).kinds(11) == ["open", "reserve", "commit"]
    assert Budgets(tmp_path).kinds(13) == ["open"]


def test_a_release_that_was_answered_is_not_answered_anew(town, thrifty):
    task = train_task(town, [11, 12])
    assert thrifty.train(task).devices == 2
    assert thrifty.train(task).devices == 1
    with pytest.raises(MessageError, match="answered before"):
        thrifty.train(train_task(town, [11]))


def test_what_is_not_made_is_charged_and_not_committed(town, thrifty, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "clipped_sum", broken)
        with pytest.raises(RuntimeError):
            thrifty.train(train_task(town, [11]))
    assert Budgets(tmp_path).kinds(11) == ["open", "reserve"]
    assert thrifty.train(train_task(town, [11])).devices == 1
    assert Budgets(tmp_path).kinds(11) == ["open", "reserve", "commit"]


def test_the_server_counts_it_as_declined(town, thrifty):
    task = train_task(town, [13])
    reply = ask(lambda context: thrifty, lambda node: train_message(node, task))
    with pytest.raises(ReplyRejected) as rejected:
        read_update(reply, binding=task.binding, shapes={})
    assert rejected.value.reason == "declined"
