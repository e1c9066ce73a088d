"""A trainable vector for each item learns what follows what, from ids and their order alone."""

import pytest
import torch

from fedprofile.common.config import load_config
from fedprofile.simulations.baselines import Popularity
from fedprofile.simulations.comparison import mean_ndcg
from fedprofile.simulations.simulate import SimulateOptions, read, simulate
from fedprofile.simulations.trained import find_run, load_scorer

CONFIG = """
[data]
path = "sequences"
synthetic_users = 500
synthetic_items = 150
[statistics]
cooccurrence = 0
[model]
item_ids = true
width = 16
window = 16
half_lives_days = [60]
[training]
rounds = 100
cohort = 120
server_learning_rate = 0.02
[privacy]
enabled = false
[evaluation]
baselines = false
bootstrap_samples = 0
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_vectors_of_bare_ids_learn_from_order(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    config = load_config(path, {"": {"seed": 1}})
    simulate(config, SimulateOptions(out=tmp_path / "run"))
    log, split, population = read(config)
    folder, config = find_run(tmp_path / "run")
    scorer = load_scorer(folder, config, log, population)
    learned = mean_ndcg(scorer, split.test, k=10)
    popular = mean_ndcg(Popularity.fit(split.train, population.table), split.test, k=10)
    assert learned > 1.4 * popular


def test_without_privacy_a_run_over_bare_ids_is_told_of_them(fedprofile, tmp_path):
    advice = "Set [model] item_ids = true"
    (tmp_path / "ids.toml").write_text(CONFIG)
    asked = ("simulate", "--config", "ids.toml", "--plan")
    assert advice not in " ".join(fedprofile(*asked).err.split())
    (tmp_path / "ids.toml").write_text(CONFIG.replace("item_ids = true", ""))
    told = fedprofile(*asked)
    assert told.code == 0, told.err
    assert advice in " ".join(told.err.split())
