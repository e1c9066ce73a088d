"""A small town: devices with visits, a catalogue, and federations over them that run in a second."""

import datetime as dt
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest

from fedprofile.audit.accountants import PLD, PRV, RDP, UNAMPLIFIED, Answer, Answers
from fedprofile.audit.cohort_test import check_cohorts
from fedprofile.audit.worker import answers
from fedprofile.client.app import build_client_app
from fedprofile.common.config import (
    ItemsConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    StatisticsConfig,
    TrainingConfig,
)
from fedprofile.common.encoder import build_encoder
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable
from fedprofile.common.ledger import Ledger
from fedprofile.common.messages import RELEASE, hosting_reply
from fedprofile.common.server_config import FederationConfig, ServerConfig
from fedprofile.common.signing import SigningKey
from fedprofile.server import service
from fedprofile.server.app import Federation
from fedprofile.server.budget import plan_budget
from fedprofile.server.item_vectors import with_room
from fedprofile.server.link import Node
from fedprofile.server.setup import create_server
from fedprofile.server.split import Sizes
from fedprofile.simulations.federate import randomness
from fedprofile.simulations.grid import InProcessGrid
from fedprofile.simulations.loopback import free_port
from fedprofile.simulations.population import Population

DAY = 86_400
NOW = 1_700_000_000
KEY = SigningKey.generate()


def make_histories(n_devices, n_items, *, sessions=5, basket=3, seed=0):
    """Devices with up to ``sessions`` visits each, on days before NOW."""
    rng = np.random.default_rng(seed)
    rows, lengths = [], []
    for _ in range(n_devices):
        count = 0
        days = np.sort(rng.choice(300, size=rng.integers(1, sessions + 1), replace=False))
        for session, day in enumerate(days):
            for item in rng.choice(n_items, size=rng.integers(1, basket + 1), replace=False):
                rows.append((item, NOW - (300 - day) * DAY, session, rng.uniform(0.5, 2), 0))
                count += 1
        lengths.append(count)
    items, times, visits, weights, types = zip(*rows, strict=True)
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array(items, dtype=np.int32),
        times=np.array(times, dtype=np.int64),
        sessions=np.array(visits, dtype=np.int32),
        weights=np.array(weights, dtype=np.float32),
        types=np.array(types, dtype=np.int16),
    )


def make_table(n_items, dimension=6, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n_items, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # The names of the blocks are not in the order of the columns.
    return ItemTable(
        vectors=vectors,
        ids=tuple(f"item {i}" for i in range(n_items)),
        tags=((),) * n_items,
        blocks={"text": (0, dimension - 2), "category": (dimension - 2, dimension)},
    )


@dataclass
class Town:
    """A population, a configuration, and what it takes to run a federation over them."""

    config: RunConfig
    population: Population
    devices_per_host: int = 1024
    now: int = NOW

    def __post_init__(self):
        self.trainer = self.population.trainer(threads=1, compiled=False)
        self.encoder = build_encoder(
            self.config.model,
            blocks=self.population.table.blocks,
            n_items=self.population.table.n_items,
            n_types=self.population.n_types,
            seed=7,
        )
        self.plan = plan_budget(
            self.config.privacy,
            self.config.training,
            population_size=self.population.size,
            sizes=Sizes.of(self.encoder, self.config.statistics, self.population.table),
        )
        self.rounds = []
        self.enough = lambda *_: None

    def client_app(self):
        return build_client_app(self.population.host_finder(self.devices_per_host, self.trainer))

    def grid(self, client_app=None, kind=InProcessGrid):
        nodes = self.population.hosts(self.devices_per_host)
        return kind(client_app or self.client_app(), nodes=nodes)

    def ledger(self, folder: Path):
        path = folder / "ledger.jsonl"
        if path.exists():
            return Ledger.open(path, signing_key=KEY, code_version="test")
        return Ledger.create(
            path,
            signing_key=KEY,
            population="town",
            population_size=self.population.size,
            delta=self.plan.delta,
            target_epsilon=self.plan.target_epsilon,
            randomness="seeded",
            code_version="test",
            config_digest=self.config.digest(),
        )

    def federation(self, folder: Path, ledger: Ledger):
        def on_round(record, weights, priors):
            self.rounds.append((record, {name: w.clone() for name, w in weights.items()}))

        return Federation(
            run="test",
            config=self.config,
            plan=self.plan,
            encoder=self.encoder,
            table=self.population.table,
            ledger=ledger,
            randomness=randomness(self.config, label="federation"),
            checkpoints=folder / "checkpoints",
            now=self.now,
            on_round=on_round,
            enough=self.enough,
        )

    def run(self, folder: Path, grid=None):
        """Run to the end, or go on where ``folder`` stands."""
        with self.ledger(folder) as ledger:
            federation = self.federation(folder, ledger)
            federation.run(grid or self.grid())
        return federation.result

    def initial(self):
        return {name: p.detach().numpy().copy() for name, p in self.encoder.named_parameters()}


@pytest.fixture(scope="session")
def build_town():
    """Town by keyword: sections of the configuration, and the size of the population."""

    def build(
        *,
        n_devices=40,
        n_items=30,
        sessions=5,
        devices_per_host=1024,
        histories=None,
        seed=3,
        **sections,
    ):
        model = {"encoder": "mean", "width": 4, "heads": 1, "window": 6, "half_lives_days": (30,)}
        training = {"rounds": 2, "negatives": 5, "local_steps": 2, "local_learning_rate": 0.5}
        privacy = {"epsilon": 8.0, "noise_multiplier": 4.0}  # calibration takes seconds
        config = RunConfig.model_validate(
            {
                "seed": seed,
                **sections,
                "model": {**model, **sections.get("model", {})},
                "training": {**training, **sections.get("training", {})},
                "privacy": {**privacy, **sections.get("privacy", {})},
            }
        )
        if histories is None:
            histories = make_histories(n_devices, n_items, sessions=sessions)
        population = Population.of(
            histories,
            user_ids=[f"user {number}" for number in range(histories.n_devices)],
            table=with_room(
                make_table(n_items),
                config.statistics,
                config.privacy.model_copy(update={"epsilon": 1e3}),  # room is for whoever asks
                population_size=histories.n_devices,
                goods=True,
            ),
            model=config.model,
            n_types=1,
        )
        return Town(config, population, devices_per_host)

    return build


@pytest.fixture
def few_items_suffice(monkeypatch):
    """A population of some dozens may compare items."""
    monkeypatch.setattr("fedprofile.server.cooccurrence._FEWEST_ITEMS", 2)


@pytest.fixture
def grid_of_nobody():
    """Sets the identity that Flower's messages need."""
    return InProcessGrid(build_client_app(lambda context: None), nodes=0)


@pytest.fixture(scope="session")
def accountants_here():
    """A class that stands in for the process that an audit leaves its sums to."""

    class Here:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def ask(self, releases, *, delta, adjacency, cohorts):
            test = check_cohorts(**vars(cohorts)) if cohorts else None
            return Answers(self.answers(releases, delta, adjacency), test)

    return Here


@pytest.fixture(scope="session")
def accountants_inline(accountants_here):
    """The real ones in this process, but for Opacus's, which would load torch."""

    class Inline(accountants_here):
        def answers(self, releases, delta, adjacency):
            described = [[m.describe(), count] for m, count in releases.items()]
            question = {"releases": described, "delta": delta, "adjacency": adjacency}
            return {PRV: Answer(None), **dict(answers(question, (RDP, UNAMPLIFIED, PLD)))}

    return Inline


@pytest.fixture
def inline_accountants(accountants_inline, monkeypatch):
    """An audit takes those."""
    monkeypatch.setattr("fedprofile.audit.verify.Accountants", accountants_inline)


@pytest.fixture(scope="session")
def made_server(tmp_path_factory):
    """The folder of a server, made once: it takes a second."""
    config = ServerConfig(
        federation=FederationConfig(population_size=3, port=free_port()),
        items=ItemsConfig(dimension=8),
        statistics=StatisticsConfig(as_of=dt.date(2026, 1, 1), cooccurrence=0),
        model=ModelConfig(encoder="mean", width=4, heads=1, window=4),
        training=TrainingConfig(rounds=2, sampling_probability=1.0),
        privacy=PrivacyConfig(delta=1e-3, noise_multiplier=4.0),
    )
    return create_server(tmp_path_factory.mktemp("made") / "server", config, items=None)


@pytest.fixture
def serve(monkeypatch):
    """Run a server's federation in this process: its Service, with a grid in place of the SuperLink."""

    def run(folder):
        config, table = folder.config, ItemTable.load(folder.items)
        size = config.federation.population_size
        population = Population.of(
            make_histories(size, table.n_items),
            user_ids=[f"device {number}" for number in range(size)],
            table=table,
            model=config.model,
            n_types=len(config.federation.event_types),
        )
        trainer = population.trainer(threads=1, compiled=False)
        app = build_client_app(population.host_finder(1, trainer))

        class Grid(InProcessGrid):
            def _answer(self, message):
                if message.metadata.message_type != RELEASE:
                    return super()._answer(message)
                return hosting_reply(message, first=message.metadata.dst_node_id - 2, count=1)

            def finish(self, *, details=""):
                pass

        class Link:
            def __init__(self, socket):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                pass

            def wait(self, timeout):
                pass

            def begin(self, *, stop, largest):
                return Grid(app, nodes=size)

        def admitted(enrolment, link):
            nodes = [Node(2 + number, "", online=True) for number in range(size)]
            return [(SimpleNamespace(number=i), node) for i, node in enumerate(nodes)]

        monkeypatch.setattr(service, "Link", Link)
        monkeypatch.setattr(service, "admit", admitted)
        service.Service(folder, threading.Event()).run()

    return run


@pytest.fixture
def on_tiny_disk(tmp_path):
    """Run a program that gets the folder of a disk of its own, so small that it can be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    trial = [*mount, 'mount -t tmpfs tmpfs "$1"', "sh", disk]
    if (
        shutil.which("unshare") is None
        or subprocess.run(trial, capture_output=True, check=False).returncode
    ):
        pytest.skip("this system doesn't let users mount")

    def run(program, *arguments, size, timeout=60):
        script = f'mount -t tmpfs -o size={size} tmpfs "$1" && exec "$2" -c "$3" "$@"'
        found = subprocess.run(
            [*mount, script, "sh", disk, sys.executable, program, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    return run


# A test is no benchmark: on a busy machine an example may take any time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
