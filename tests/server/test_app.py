import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedprofile.client import host
from fedprofile.client.cooccurrence import cooccurrence_contribution, together_contribution
from fedprofile.client.examples import build_examples
from fedprofile.client.popularity import popularity_contribution
from fedprofile.common.errors import BudgetError, ConfigError, LedgerError, RunFolderError
from fedprofile.common.ledger import Ledger
from fedprofile.common.ledger_entries import Commit, Reserve
from fedprofile.common.messages import (
    COOCCURRENCE,
    TASKS,
    CooccurrenceTask,
    TrainTask,
    hosting_reply,
    read_task,
)
from fedprofile.common.signing import SigningKey
from fedprofile.server import app as server_app
from fedprofile.server.app import find_hosts
from fedprofile.server.cooccurrence import head_of
from fedprofile.server.neighbours import neighbours_of
from fedprofile.server.popularity import ItemPriors, item_priors
from fedprofile.server.relations import item_relations
from fedprofile.simulations.exact_statistics import exact_statistics
from fedprofile.simulations.grid import InProcessGrid

NOTHING = {"rounds": 0}
OPEN = {"enabled": False}


def hosting(answer):
    """A client app that answers the first question only."""

    def app(message, context):
        partition = context.node_config["partition-id"]
        return answer(message, partition)

    return app


def ranges(*spans):
    def answer(message, partition):
        first, stop = spans[partition]
        return hosting_reply(message, first=first, count=stop - first)

    return InProcessGrid(hosting(answer), nodes=len(spans))


# --- hosts ---------------------------------------------------------------------------------------


def test_hosts_are_found_and_ordered_by_their_devices():
    grid = ranges((6, 10), (0, 4), (4, 4), (4, 6))
    hosts = find_hosts(grid, population_size=10, timeout=0)
    assert [r for r in hosts.values() if r] == [range(0, 4), range(4, 6), range(6, 10)]


@pytest.mark.parametrize(
    ("spans", "complaint"),
    [
        ([(0, 4), (4, 9)], "host 9 devices, but the population is 10"),
        ([(0, 4), (3, 10)], "device 3 is hosted twice"),
        ([(0, 2**62)], "but the population is 10"),
        ([], "host 0 devices"),
    ],
)
def test_nodes_that_do_not_host_the_population_are_an_error_not_a_hang(spans, complaint):
    with pytest.raises(ConfigError, match=complaint):
        find_hosts(ranges(*spans), population_size=10, timeout=0)


def test_hosts_that_come_late_are_awaited():
    class Late(InProcessGrid):
        asked = 0

        def get_node_ids(self):
            self.asked += 1
            return list(super().get_node_ids())[: self.asked - 1]

    def answer(message, partition):
        return hosting_reply(message, first=5 * partition, count=5)

    grid = Late(hosting(answer), nodes=2)
    assert len(find_hosts(grid, population_size=10, timeout=30)) == 2
    assert grid.asked == 3


def lies(message, partition):
    return {
        0: Message(Error(code=5, reason="gone\naway"), reply_to=message),
        1: Message(RecordDict(), reply_to=message),
        2: Message(
            RecordDict({"hosting": ConfigRecord({"first": -4, "count": 14})}), reply_to=message
        ),
        3: Message(
            RecordDict({"hosting": ConfigRecord({"first": 0.5, "count": 2})}), reply_to=message
        ),
    }[partition]


@pytest.mark.parametrize("lie", range(4))
def test_a_hostile_answer_is_a_clear_error_at_once(lie):
    grid = InProcessGrid(hosting(lambda message, _: lies(message, lie)), nodes=1)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"node 2 doesn't say which devices it hosts") as caught:
        find_hosts(grid, population_size=10)
    assert time.monotonic() - started < 30
    assert "\n" not in str(caught.value)


# --- statistics ----------------------------------------------------------------------------------


def exact_popularity(town):
    return popularity_contribution(
        town.population.histories,
        now=town.now,
        half_lives_days=town.config.statistics.half_lives_days,
        n_items=town.population.table.n_items,
        clip_norm=1.0,
    ).arrays["popularity"]


def test_popularity_without_privacy_is_exact(build_town, tmp_path):
    town = build_town(privacy=OPEN, training=NOTHING, devices_per_host=7)
    result = town.run(tmp_path)
    np.testing.assert_allclose(result.checkpoint.popularity, exact_popularity(town), rtol=1e-5)
    expected = item_priors(result.checkpoint.popularity.numpy(), stddev=0)
    np.testing.assert_array_equal(result.statistics.current, expected.current)
    for name, weight in town.initial().items():
        np.testing.assert_array_equal(result.weights[name].numpy(), weight)


def test_popularity_carries_the_noise_of_its_mechanism(build_town, tmp_path):
    town = build_town(n_items=4_000, training=NOTHING)
    result = town.run(tmp_path)
    noise = result.checkpoint.popularity.numpy() - exact_popularity(town)
    expected = town.plan.popularity.noise_stddev
    assert noise.std() == pytest.approx(expected, rel=4.5 / np.sqrt(2 * noise.size))
    assert result.checkpoint.rounds[0]["trained"] == 40


def test_hosts_that_fail_cost_the_statistics_their_part(build_town, tmp_path):
    town = build_town(
        privacy=OPEN, training=NOTHING, statistics={"cooccurrence": 0}, devices_per_host=10
    )
    honest = town.client_app()

    def app(message, context):
        if message.metadata.message_type == "query.popularity":
            if context.node_config["partition-id"] == 1:
                return Message(Error(code=2, reason="died"), reply_to=message)
            if context.node_config["partition-id"] == 2:
                reply = honest(message, context)
                reply.content["receipt"]["round"] = 1
                return reply
        return honest(message, context)

    result = town.run(tmp_path, town.grid(app))
    [record] = result.checkpoint.rounds
    assert record["rejected"] == {"error": 10, "stale": 10}
    assert (record["sampled"], record["trained"]) == (40, 20)
    with town.ledger(tmp_path) as ledger:
        [commit] = [entry for entry in ledger.entries if isinstance(entry, Commit)]
    assert commit.rejected == {"error": 10, "stale": 10}


TOGETHER = {"cooccurrence": 5}


def exact_cooccurrence(town, head):
    return cooccurrence_contribution(
        town.population.histories, head=head, n_items=town.population.table.n_items, clip_norm=1.0
    ).arrays["cooccurrence"]


def test_what_is_taken_together_becomes_vectors_that_training_goes_by(build_town, tmp_path):
    town = build_town(statistics=TOGETHER, privacy=OPEN, devices_per_host=7)
    tasks = []

    class Watched(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            tasks.extend(read_task(m) for m in messages if m.metadata.message_type in TASKS)
            return super().send_and_receive(messages, timeout=timeout)

    result = town.run(tmp_path, town.grid(kind=Watched))
    popularity = result.statistics.long_run
    head = head_of(popularity, 30)
    relations = item_relations(
        exact_cooccurrence(town, head),
        table=town.population.table,
        head=head,
        priors=ItemPriors(popularity, result.statistics.current),
        mechanism=town.plan.cooccurrence,
        devices=40,
    )
    expected = relations.vectors
    assert np.linalg.norm(expected, axis=1).mean() > 0.9
    np.testing.assert_allclose(
        result.statistics.vectors @ result.statistics.vectors.T, expected @ expected.T, atol=1e-4
    )
    asked = [task for task in tasks if isinstance(task, CooccurrenceTask)]
    assert all(task.head.tolist() == head.tolist() for task in asked)
    trained = [task for task in tasks if isinstance(task, TrainTask)]
    assert all(np.array_equal(task.vectors, result.statistics.vectors) for task in trained)
    filled = result.statistics.fill(town.population.table)
    np.testing.assert_array_equal(filled.vectors[:, -5:], result.statistics.vectors)
    followed = relations.successors
    np.testing.assert_array_equal(filled.successors.pairs, followed.pairs)
    np.testing.assert_allclose(filled.successors.chances, followed.chances, rtol=1e-4)
    assert not town.population.table.vectors[:, -5:].any()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_training_begins_with_what_is_taken_together_by_what_content_does_not_tell(
    build_town, tmp_path, monkeypatch, share
):
    def told(noisy, **settings):
        return replace(item_relations(noisy, **settings), beyond_content=share)

    monkeypatch.setattr(server_app, "item_relations", told)
    town = build_town(statistics=TOGETHER, privacy=OPEN, training=NOTHING)
    result = town.run(tmp_path)
    assert result.statistics.beyond_content == share
    own = dict(town.encoder.named_parameters())
    assert list(town.population.table.blocks)[-1] == "cooccurrence"
    expected = own.pop("gains.weight").detach().clone()
    assert expected[-1].all()
    expected[-1] *= share
    torch.testing.assert_close(result.weights["gains.weight"], expected)
    for name, weight in own.items():
        assert torch.equal(result.weights[name], weight)
    # Gone on with, it isn't weighed once more.
    again = town.run(tmp_path)
    assert torch.equal(again.weights["gains.weight"], result.weights["gains.weight"])


WHOLE = {"whole_histories": True}


def exact_pairs(town, head):
    return together_contribution(
        town.population.histories, head=head, n_items=town.population.table.n_items, clip_norm=1.0
    ).arrays["cooccurrence"]


@pytest.mark.parametrize("statistics", [TOGETHER, WHOLE])
def test_models_that_see_everything_know_what_the_federation_knows(
    build_town, tmp_path, statistics
):
    town = build_town(statistics=statistics, privacy=OPEN, training=NOTHING)
    told = town.run(tmp_path).statistics
    known = exact_statistics(town.population, town.config.statistics, now=town.now)
    np.testing.assert_allclose(known.current, told.current, rtol=1e-4)
    assert len(known.successors) or statistics != WHOLE
    np.testing.assert_array_equal(known.successors.pairs, told.successors.pairs)
    np.testing.assert_allclose(known.successors.chances, told.successors.chances, rtol=1e-3)


def test_neighbours_are_of_the_devices_that_answered(build_town, tmp_path, monkeypatch):
    town = build_town(statistics=WHOLE, privacy=OPEN, training=NOTHING, devices_per_host=10)
    honest, seen = town.client_app(), []

    def keep(noisy, **settings):
        seen.append(settings["devices"])
        return item_relations(noisy, **settings)

    def app(message, context):
        if message.metadata.message_type == COOCCURRENCE and context.node_config["partition-id"]:
            return Message(Error(code=2, reason="died"), reply_to=message)
        return honest(message, context)

    monkeypatch.setattr(server_app, "item_relations", keep)
    town.run(tmp_path, town.grid(app))
    assert seen == [10]


def test_what_is_held_together_is_told_of_whole_histories(build_town, tmp_path):
    town = build_town(statistics=WHOLE, privacy=OPEN, devices_per_host=7)
    assert not town.plan.cooccurrence.private
    result = town.run(tmp_path)
    known = result.statistics
    head = head_of(known.long_run, 30)
    priors = ItemPriors(known.long_run, known.current)
    expected = neighbours_of(
        exact_pairs(town, head), head=head, priors=priors, voice=0.5, stddev=0.0, devices=40
    )
    assert len(expected)
    np.testing.assert_array_equal(known.successors.pairs, expected.pairs)
    np.testing.assert_allclose(known.successors.chances, expected.chances, rtol=1e-3)
    assert known.vectors.shape == (30, 0)
    table = town.population.table
    filled = known.fill(table)
    assert filled.successors is known.successors
    np.testing.assert_array_equal(filled.vectors, table.vectors)
    # Without privacy it is what is done for goods unasked; with some, it has noise like any other.
    assert build_town(privacy=OPEN).population.table.whole
    # Gone on with, nothing is asked twice.
    again = town.run(tmp_path)
    np.testing.assert_array_equal(again.statistics.successors.chances, known.successors.chances)


@pytest.mark.usefixtures("few_items_suffice")
@pytest.mark.parametrize(
    ("statistics", "exact"), [(TOGETHER, exact_cooccurrence), (WHOLE, exact_pairs)]
)
def test_it_carries_the_noise_of_its_mechanism(
    build_town, tmp_path, monkeypatch, statistics, exact
):
    seen = []

    def keep(noisy, **settings):
        seen.append((noisy, settings))
        return item_relations(noisy, **settings)

    monkeypatch.setattr(server_app, "head_size", lambda *_, **__: 300)
    monkeypatch.setattr(server_app, "item_relations", keep)
    town = build_town(n_items=400, statistics=statistics, training=NOTHING)
    town.run(tmp_path)
    [(noisy, settings)] = seen
    noise = noisy - exact(town, settings["head"])
    stddev = town.plan.cooccurrence.noise_stddev
    assert settings["mechanism"].noise_stddev == stddev
    assert noise.std() == pytest.approx(stddev, rel=4.5 / np.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 4.5 * stddev / np.sqrt(noise.size)
    with town.ledger(tmp_path) as ledger:
        tasks = [entry.task for entry in ledger.entries if isinstance(entry, Reserve)]
        assert tasks == ["statistics/popularity", "statistics/cooccurrence"]
        assert ledger.epsilon_spent() <= 8.0


class DyingBetween(InProcessGrid):
    """Loses its server when it is asked for the second statistic."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if messages[0].metadata.message_type == COOCCURRENCE:
            raise ConnectionError
        return super().send_and_receive(messages, timeout=timeout)


@pytest.mark.usefixtures("few_items_suffice")
def test_a_crash_between_the_statistics_repeats_the_second_alone(build_town, tmp_path):
    town = build_town(statistics=TOGETHER, training={"rounds": 1})

    with pytest.raises(ConnectionError):
        town.run(tmp_path, town.grid(kind=DyingBetween))
    result = town.run(tmp_path)
    assert result.stopped is None
    assert result.checkpoint.vectors is not None
    with town.ledger(tmp_path) as ledger:
        entries = [entry for entry in ledger.entries if isinstance(entry, Reserve)]
        assert len(ledger.pending()) == 1
    assert [entry.task.partition("/")[2] or entry.round for entry in entries] == [
        "popularity",
        "cooccurrence",
        "cooccurrence",
        1,
    ]
    again = town.run(tmp_path)  # from the checkpoint, which has both
    np.testing.assert_array_equal(again.statistics.vectors, result.statistics.vectors)


@pytest.mark.usefixtures("few_items_suffice")
def test_what_crashes_have_eaten_is_missing_in_the_result_and_no_more(build_town, tmp_path):
    """Without a round to spare the second statistic can't be made twice; popularity is a result."""
    town = build_town(statistics=TOGETHER, training=NOTHING)

    with pytest.raises(ConnectionError):
        town.run(tmp_path, town.grid(kind=DyingBetween))
    for _ in range(2):
        result = town.run(tmp_path)
        assert "would bring ε to" in result.stopped
        assert not result.statistics.vectors.any()
        assert np.ptp(result.statistics.current) > 0
    with town.ledger(tmp_path) as ledger:
        assert ledger.epsilon_spent() <= 8.0
        assert sum(isinstance(entry, Reserve) for entry in ledger.entries) == 2


def test_no_share_no_statistics(build_town, tmp_path):
    town = build_town(privacy={"split": {"popularity": 0.0}}, training={"rounds": 1})
    result = town.run(tmp_path)
    np.testing.assert_allclose(np.exp(result.statistics.current), 1 / 30, rtol=1e-5)
    np.testing.assert_array_equal(result.statistics.current, result.statistics.long_run)
    with town.ledger(tmp_path) as ledger:
        assert [entry.kind for entry in ledger.entries] == ["open", "reserve", "commit"]


def test_a_budget_without_room_for_anything_is_refused_before_it_is_asked_for(build_town, tmp_path):
    town = build_town(privacy={"epsilon": 1.0, "noise_multiplier": 50.0})
    asked = []
    honest = town.client_app()

    def app(message, context):
        asked.append(message.metadata.message_type)
        return honest(message, context)

    path = tmp_path / "ledger.jsonl"
    with Ledger.create(
        path,
        signing_key=SigningKey.generate(),
        population="town",
        population_size=town.population.size,
        delta=town.plan.delta,
        target_epsilon=0.01,
        randomness="seeded",
        code_version="test",
        config_digest="",
    ) as ledger:
        federation = town.federation(tmp_path, ledger)
        with pytest.raises(BudgetError, match="statistics/popularity would bring ε"):
            federation.run(town.grid(app))
    assert set(asked) == {"query.hosting"}
    assert federation.result is None


# --- going on ------------------------------------------------------------------------------------


def test_a_release_whose_commit_was_lost_is_committed_late_and_charged_once(build_town, tmp_path):
    town = build_town()
    town.run(tmp_path)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with town.ledger(tmp_path) as ledger:
        assert len(ledger.pending()) == 1
        spent = ledger.epsilon_spent()
    town.run(tmp_path)
    with town.ledger(tmp_path) as ledger:
        assert ledger.pending() == ()
        assert ledger.epsilon_spent() == spent
        again, before = ledger.entries[-1], lines[-1].decode()
        assert f'"model_after":"{again.model_after}"' in before
        assert f'"replies_counted":{again.replies_counted}' in before


def test_a_checkpoint_that_the_ledger_does_not_know_is_refused(build_town, tmp_path):
    town = build_town()
    town.run(tmp_path)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 3):
        path.unlink()
        if kept:
            path.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(RunFolderError, match="round 2 isn't in the ledger"):
            town.run(tmp_path)


def test_a_lost_checkpoint_is_paid_for_again(build_town, tmp_path):
    town = build_town(training={"rounds": 1})
    town.run(tmp_path)
    for file in (tmp_path / "checkpoints").iterdir():
        file.unlink()
    with town.ledger(tmp_path) as ledger:
        before = ledger.epsilon_spent()
    town.run(tmp_path)
    with town.ledger(tmp_path) as ledger:
        assert ledger.epsilon_spent() > before
        assert sum(entry.kind == "reserve" for entry in ledger.entries) == 4


@pytest.mark.parametrize("kind", ["train", "query.popularity"])
def test_a_late_reply_to_a_crashed_attempt_does_not_count_in_its_repetition(
    build_town, tmp_path, kind
):
    """With a seed the repetition is the same in all but the release: its coins are the same too."""
    town = build_town(training={"rounds": 1})
    late = []

    class Dying(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if messages[0].metadata.message_type == kind:
                late.extend(replies)
                raise ConnectionError
            return replies

    class Late(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            asked = messages[0].metadata.message_type == kind
            return late if asked else super().send_and_receive(messages, timeout=timeout)

    with pytest.raises(ConnectionError):
        town.run(tmp_path, town.grid(kind=Dying))
    record = town.run(tmp_path, town.grid(kind=Late)).checkpoint.rounds[kind == "train"]
    assert record["sampled"] > 0
    assert (record["trained"], record["rejected"]) == (0, {"stale": record["sampled"]})


def test_another_catalogue_is_refused(build_town, tmp_path):
    build_town().run(tmp_path)
    with pytest.raises(RunFolderError, match="items have changed"):
        build_town(n_items=31).run(tmp_path)


def test_another_population_is_refused(build_town, tmp_path):
    build_town(training={"rounds": 3}).run(tmp_path)
    smaller = build_town(n_devices=39, training={"rounds": 3})
    for file in (tmp_path / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match="for 39 users can't be charged"):
        smaller.run(tmp_path)


def test_one_run_at_a_time(build_town, tmp_path):
    town = build_town()
    with town.ledger(tmp_path), pytest.raises(LedgerError, match="another process is writing"):
        town.run(tmp_path)


def test_devices_train_by_the_vectors_of_the_task(build_town, tmp_path, monkeypatch):
    """Not by the zeros that the public table holds in their place."""
    seen = []

    def keep(*arguments, vectors, **settings):
        seen.append(vectors)
        return build_examples(*arguments, vectors=vectors, **settings)

    monkeypatch.setattr(host, "build_examples", keep)
    town = build_town(statistics=TOGETHER, privacy=OPEN)
    result = town.run(tmp_path)
    assert result.statistics.vectors.any()
    assert seen
    assert all(np.array_equal(v[:, -5:], result.statistics.vectors) for v in seen)
