"""The private round on its real path: strategy, hosts, messages, Opacus, checkpoint and ledger."""

import math

import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from fedprofile.client.app import build_client_app
from fedprofile.common.errors import MessageError
from fedprofile.common.histories import Histories
from fedprofile.common.ledger_entries import Commit, Reserve, Stop, read_ledger
from fedprofile.common.messages import read_train_task, refusal, update_reply
from fedprofile.common.randomness import NoiseSource
from fedprofile.common.updates import ClippedUpdate
from fedprofile.server.checkpoint import Checkpoint
from fedprofile.simulations.grid import InProcessGrid

OPEN = {"enabled": False}
PLAIN = {  # one round of FedAvg, its step as it is
    "rounds": 1,
    "server_optimizer": "fedavg",
    "server_learning_rate": 1.0,
    "server_momentum": 0.0,
    "averaging": 0.0,
}


def change(town, result):
    initial = town.initial()
    return {name: result.weights[name].numpy() - initial[name] for name in initial}


def flat(arrays):
    return np.concatenate([np.asarray(arrays[name]).ravel() for name in sorted(arrays)])


def local_updates(town, devices, seed, prior, clip_norm=math.inf):
    """Each device on its own: w_global − w_local, in float64."""
    from fedprofile.client.examples import build_examples
    from fedprofile.client.local_training import LocalTraining

    training, model, table = town.config.training, town.config.model, town.population.table
    found = []
    for device in devices:
        examples = build_examples(
            town.population.histories.take(np.array([device])),
            town.population.keys[[device]],
            vectors=table.vectors,
            scales=model.scales,
            window=model.window,
            new_targets_only=training.targets == "new",
            seed=seed,
        )
        local = LocalTraining(
            steps=training.local_steps,
            learning_rate=training.local_learning_rate,
            negatives=training.negatives,
            clip_norm=clip_norm,
            seed=seed,
            dropout=training.dropout,
        )
        update = town.trainer.clipped_sum(town.initial(), examples, prior, local)
        found.append({name: value.astype(float) for name, value in update.arrays.items()})
    return found


class Watching(InProcessGrid):
    """Keeps the tasks that pass, and what ``check`` says at the moment of sending."""

    check = staticmethod(lambda: None)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        kinds = {message.metadata.message_type for message in messages}
        if kinds == {"train"}:
            self.tasks = [read_train_task(message) for message in messages]
            self.seen = [*getattr(self, "seen", []), self.check()]
        return super().send_and_receive(messages, timeout=timeout)


# --- noise ---------------------------------------------------------------------------------------


def silent_histories(n):
    """Devices with one visit each: they train on nothing and contribute zero."""
    return Histories(
        offsets=np.arange(n + 1),
        items=np.zeros(n, dtype=np.int32),
        times=np.full(n, 1_600_000_000),
        sessions=np.zeros(n, dtype=np.int32),
        weights=np.ones(n, dtype=np.float32),
        types=np.zeros(n, dtype=np.int16),
    )


@pytest.fixture(scope="module")
def silent_town(build_town):
    """160,000 weights and nobody to train them."""
    return build_town(
        histories=silent_histories(50),
        n_items=5_000,
        model={"item_ids": True},
        training={**PLAIN, "server_learning_rate": 0.5, "sampling_probability": 0.4},
        privacy={"noise_multiplier": 1.7, "clip_norm": 0.3, "split": {"popularity": 0.0}},
    )


def noise_ratio(town, folder):
    """Standard deviation of the model's change by what σ·C/(q·N)·lr predicts."""
    folder.mkdir()
    result = town.run(folder)
    moved = flat(change(town, result))
    assert len(moved) >= 100_000
    assert abs(moved.mean()) < 5 * moved.std() / math.sqrt(len(moved))
    return moved.std() / (1.7 * 0.3 / (0.4 * 50) * 0.5)


def test_the_noise_in_the_model_is_that_of_the_mechanism(silent_town, tmp_path):
    assert noise_ratio(silent_town, tmp_path / "a") == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("factor", [2 / 3, 1.5])
def test_wrong_noise_would_show(silent_town, tmp_path, monkeypatch, factor):
    right = NoiseSource.normal
    monkeypatch.setattr(
        NoiseSource,
        "normal",
        lambda self, shape, *, stddev: right(self, shape, stddev=factor * stddev),
    )
    assert noise_ratio(silent_town, tmp_path / "a") == pytest.approx(factor, rel=0.01)
    assert abs(factor - 1) > 0.01


def test_no_two_rounds_share_noise(build_town, tmp_path):
    town = build_town(
        histories=silent_histories(30), training={**PLAIN, "rounds": 3}, model={"item_ids": True}
    )
    town.run(tmp_path)
    weights = [flat(town.initial()), *[flat(w) for _, w in town.rounds]]
    steps = np.diff(np.stack(weights), axis=0)
    correlation = np.corrcoef(steps)
    assert np.abs(correlation[~np.eye(3, dtype=bool)]).max() < 5 / math.sqrt(steps.shape[1])


# --- the mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dropout", "hosts"), [(0.0, 1), (0.4, 1), (0.4, 4)])
def test_fedavg_without_privacy_is_the_plain_average_of_local_models(
    build_town, tmp_path, dropout, hosts
):
    town = build_town(
        privacy=OPEN, training={**PLAIN, "dropout": dropout}, devices_per_host=40 // hosts
    )
    grid = town.grid(kind=Watching)
    result = town.run(tmp_path, grid)
    assert len(grid.tasks) == hosts
    assert {task.dropout for task in grid.tasks} == {dropout}
    assert np.concatenate([task.devices for task in grid.tasks]).tolist() == list(range(40))
    task = grid.tasks[0]
    updates = local_updates(town, range(40), task.seed, task.prior)
    # Users count equally, however many events they have.
    assert len(set(town.population.histories.lengths)) > 3
    expected = -np.mean([flat(update) for update in updates], axis=0)
    got = flat(change(town, result))
    assert np.linalg.norm(expected) > 1e-3
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


def test_the_divisor_is_the_expected_cohort_whoever_was_drawn_and_replied(build_town, tmp_path):
    town = build_town(
        privacy=OPEN, training={**PLAIN, "sampling_probability": 0.5}, devices_per_host=10
    )
    app, gone = town.client_app(), []

    class Losing(Watching):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if replies[0].metadata.message_type == "train":
                gone.extend(self.tasks[1].devices)
                replies[1] = refusal(messages[1], MessageError("gone"))
            return replies

    grid = town.grid(app, kind=Losing)
    result = town.run(tmp_path, grid)
    drawn = np.concatenate([task.devices for task in grid.tasks])
    stayed = [device for device in drawn if device not in gone]
    assert len(drawn) != 20  # as it happens, the cohort isn't the expected one
    assert 0 < len(gone) < len(drawn)
    task = grid.tasks[0]
    updates = local_updates(town, stayed, task.seed, task.prior)
    expected = -sum(flat(update) for update in updates) / (0.5 * 40)
    got = flat(change(town, result))
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
    [record] = [record for record, _ in town.rounds]
    assert (record.sampled, record.trained) == (len(drawn), len(stayed))
    assert record.rejected == {"error": len(gone)}


def test_clipped_updates_of_all_devices_weigh_the_same(build_town, tmp_path):
    town = build_town(
        training=PLAIN, privacy={"clip_norm": 1e-4, "noise_multiplier": 2.0, "epsilon": 50.0}
    )
    grid = town.grid(kind=Watching)
    result = town.run(tmp_path, grid)
    [task] = grid.tasks
    assert task.clip_norm == 1e-4
    updates = [flat(u) for u in local_updates(town, range(40), task.seed, task.prior, 1e-4)]
    norms = np.array([np.linalg.norm(update) for update in updates])
    # Whoever learned anything moves the mean by C, the rest by nothing.
    assert ((norms < 1e-12) | (abs(norms - 1e-4) < 2e-6)).all()
    # What is left beside the mean is noise of the size that the mechanism says.
    noise = flat(change(town, result)) + np.mean(updates, axis=0)
    expected = 2.0 * 1e-4 / 40
    assert noise.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * len(noise)))


def test_an_empty_cohort_is_a_step_of_noise(build_town, tmp_path):
    town = build_town(training={**PLAIN, "sampling_probability": 1e-9})
    result = town.run(tmp_path)
    [record] = [record for record, _ in town.rounds]
    assert (record.sampled, record.trained, record.rejected) == (0, 0, {})
    assert np.abs(flat(change(town, result))).min() > 0


def test_hostile_hosts_cost_their_own_part_only(build_town, tmp_path):
    town = build_town(privacy=OPEN, training=PLAIN, devices_per_host=8)
    honest = town.client_app()

    def lie(message, context):
        """Partition 0 is honest; the others lie, each in another way."""
        reply = honest(message, context)
        partition = context.node_config["partition-id"]
        if message.metadata.message_type != "train" or partition == 0:
            return reply
        if partition == 1:
            return refusal(message, ValueError("died"))
        array = reply.content["update"]["numbers"]
        if partition == 2:
            array.data = np.full(array.shape, np.nan, np.float32).tobytes()
        elif partition == 3:
            array.data = array.data[:-1]
        elif partition == 4:
            reply.content["receipt"]["devices"] = 10**6
        return reply

    class Doubling(Watching):
        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            return [*replies, *replies]

    grid = town.grid(lie, kind=Doubling)
    result = town.run(tmp_path, grid)
    [record] = [record for record, _ in town.rounds]
    assert record.rejected == {"error": 8, "non-finite": 8, "malformed": 8, "devices": 8}
    assert record.ignored == {"duplicate": 5}
    assert (record.sampled, record.trained) == (40, 8)
    updates = local_updates(town, range(8), grid.tasks[0].seed, grid.tasks[0].prior)
    expected = -sum(flat(update) for update in updates) / 40
    assert np.linalg.norm(flat(change(town, result)) - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_device_that_sends_more_than_its_clip_is_refused(build_town, tmp_path):
    town = build_town(training=PLAIN, devices_per_host=20)
    honest = town.client_app()

    def greedy(message, context):
        if message.metadata.message_type == "train" and context.node_config["partition-id"]:
            task = read_train_task(message)
            arrays = {n: np.ones_like(w) for n, w in task.weights.items()}
            reply = update_reply(message, task.binding, ClippedUpdate(arrays, 20, math.inf))
            reply.content["receipt"]["clip_norm"] = task.clip_norm
            return reply
        return honest(message, context)

    town.run(tmp_path, town.grid(greedy))
    assert town.rounds[0][0].rejected == {"norm": 20}


# --- rounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "averaging", "counted"),
    [(4, 0.5, [3, 4]), (3, 0.5, [2, 3]), (3, 0.0, [3]), (10, 0.9, list(range(2, 11)))],
)
def test_the_result_is_the_average_of_the_last_rounds(
    build_town, tmp_path, rounds, averaging, counted
):
    town = build_town(
        n_devices=6, privacy=OPEN, training={"rounds": rounds, "averaging": averaging}
    )
    result = town.run(tmp_path)
    weights = {record.round: flat(w) for record, w in town.rounds}
    assert list(weights) == list(range(1, rounds + 1))
    expected = np.mean([weights[number] for number in counted], axis=0)
    np.testing.assert_allclose(flat(result.weights), expected, rtol=1e-5, atol=1e-7)


def test_a_release_is_reserved_before_it_is_asked_for_and_committed_after_it_is_kept(
    build_town, tmp_path, monkeypatch
):
    town = build_town()
    with town.ledger(tmp_path) as ledger:
        grid = town.grid(kind=Watching)
        grid.check = lambda: [entry.round for entry in ledger.pending()]
        kept, save = [], Checkpoint.save

        def watched(checkpoint, folder):
            kept.append([entry.round for entry in ledger.pending()])
            save(checkpoint, folder)

        monkeypatch.setattr(Checkpoint, "save", watched)
        town.federation(tmp_path, ledger).run(grid)
        assert grid.seen == [[1], [2]]
        assert kept == [[None], [1], [2]]  # statistics have no round
        assert ledger.pending() == ()


def test_the_ledger_tells_what_happened(build_town, tmp_path):
    town = build_town(training={"sampling_probability": 0.5}, devices_per_host=20)
    result = town.run(tmp_path)
    entries = read_ledger(tmp_path / "ledger.jsonl")
    reserves = [entry for entry in entries if isinstance(entry, Reserve)]
    commits = [entry for entry in entries if isinstance(entry, Commit)]
    assert [r.task for r in reserves] == ["statistics/popularity", "training", "training"]
    assert [r.sequence for r in reserves] == [c.release for c in commits]
    assert reserves[0].mechanism == town.plan.popularity
    assert reserves[1].mechanism == reserves[2].mechanism == town.plan.training
    assert commits[1].model_after == reserves[2].model_before
    for commit, record in zip(commits, result.checkpoint.rounds, strict=True):
        assert (commit.cohort_size, commit.replies_counted) == (
            record["sampled"],
            record["trained"],
        )
    # ε of the ledger is dp_accounting's own figure for its events.
    accountant = PLDAccountant()
    for entry in reserves:
        accountant.compose(entry.mechanism.event())
    with town.ledger(tmp_path) as ledger:
        assert ledger.epsilon_spent() == pytest.approx(
            accountant.get_epsilon(town.plan.delta), abs=1e-3
        )
        assert ledger.epsilon_spent() <= town.config.privacy.epsilon


def test_a_round_that_the_budget_forbids_ends_the_run_with_its_result(build_town, tmp_path):
    town = build_town(
        training={"rounds": 50, "averaging": 0.0},
        privacy={"epsilon": 4.0, "noise_multiplier": 2.0},
    )
    result = town.run(tmp_path)
    done = [record.round for record, _ in town.rounds]
    assert 1 < len(done) < 50
    assert result.checkpoint.round == done[-1]
    assert f"round {done[-1] + 1}, would bring ε to" in result.stopped
    np.testing.assert_array_equal(flat(result.weights), flat(town.rounds[-1][1]))
    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert sum(isinstance(entry, Reserve) for entry in entries) == 1 + len(done)
    # One more would have been too much, and every one that fits was made.
    accountant = PLDAccountant()
    for entry in entries:
        if isinstance(entry, Reserve):
            accountant.compose(entry.mechanism.event())
    assert accountant.get_epsilon(town.plan.delta) <= 4.0
    accountant.compose(town.plan.training.event())
    assert accountant.get_epsilon(town.plan.delta) > 4.0
    assert not any(isinstance(entry, Stop) for entry in entries)  # that is the caller's to say


def test_interrupted_and_resumed_is_the_same_as_uninterrupted(build_town, tmp_path):
    settings = {"training": {"rounds": 4, "sampling_probability": 0.6}, "devices_per_host": 7}
    through = build_town(**settings)
    (tmp_path / "through").mkdir()
    expected = through.run(tmp_path / "through")

    class Interrupt(Exception):
        pass

    class Stopping(Watching):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if len(getattr(self, "seen", [])) == 3:
                raise Interrupt
            return replies

    town = build_town(**settings)
    (tmp_path / "cut").mkdir()
    with pytest.raises(Interrupt):
        town.run(tmp_path / "cut", town.grid(kind=Stopping))
    assert [record.round for record, _ in town.rounds] == [1, 2]
    # The third round was reserved and is repeated; the noise leaves room for that.
    result = town.run(tmp_path / "cut")
    assert [record.round for record, _ in town.rounds] == [1, 2, 3, 4]
    np.testing.assert_array_equal(flat(result.weights), flat(expected.weights))
    with town.ledger(tmp_path / "cut") as ledger:
        assert [entry.round for entry in ledger.pending()] == [3]


def test_rounds_end_where_it_is_enough(build_town, tmp_path):
    asked = []

    def enough(checkpoint, statistics):
        asked.append((checkpoint.round, statistics.current.shape))
        return "of no more use" if checkpoint.round >= 2 else None

    town = build_town(training={"rounds": 3})
    town.enough = enough
    result = town.run(tmp_path)
    assert asked == [(number, (30,)) for number in (0, 1, 2)]
    assert (result.checkpoint.round, result.stopped) == (2, "of no more use")
    # A run that goes on asks where it stands, before anything is charged.
    before = (tmp_path / "ledger.jsonl").read_bytes()
    again = town.run(tmp_path)
    assert asked[3:] == [(2, (30,))]
    assert again.stopped == "of no more use"
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_a_run_that_is_enough_after_its_last_round_was_not_stopped(build_town, tmp_path):
    town = build_town(training={"rounds": 2})
    town.enough = lambda checkpoint, _: "of no more use" if checkpoint.round == 2 else None
    result = town.run(tmp_path)
    assert (result.checkpoint.round, result.stopped) == (2, None)


def test_resuming_twice_changes_nothing(build_town, tmp_path):
    town = build_town()
    result = town.run(tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    again = town.run(tmp_path)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert len(town.rounds) == 2
    np.testing.assert_array_equal(flat(result.weights), flat(again.weights))
    assert again.checkpoint.round == 2


def test_an_app_without_a_host_costs_all_replies_and_no_crash(build_town, tmp_path, caplog):
    town = build_town(training=PLAIN)
    honest = town.client_app()

    def nowhere(context):
        raise KeyError("no such partition")

    lost = build_client_app(nowhere)

    def app(message, context):
        train = message.metadata.message_type == "train"
        return (lost if train else honest)(message, context)

    town.run(tmp_path, town.grid(app))
    assert town.rounds[0][0].rejected == {"error": 40}
    assert "no such partition" in caplog.text
