import io
import json
import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from rich.console import Console
from typer.testing import CliRunner

from fedprofile.common.config import load_config
from fedprofile.common.errors import BudgetError
from fedprofile.simulations.cli import app
from fedprofile.simulations.plan import plan, show
from fedprofile.simulations.run_folder import RunFolder


@pytest.fixture
def planned(tmp_path):
    def of(**privacy):
        small = {
            "data": {"synthetic_users": 120, "synthetic_items": 60},
            "model": {"encoder": "mean", "width": 4},
            "training": {"rounds": 5, "cohort": 30},
            "privacy": privacy,
        }
        return plan(load_config(None, small), RunFolder(tmp_path / "none"))

    return of


@pytest.mark.parametrize("target", [0.5, 8.0])
def test_the_plan_is_within_its_target_by_an_independent_count(planned, target):
    found = planned(epsilon=target)
    *statistics, training = found["releases"]
    assert len(statistics) == (2 if target == 8.0 else 1)  # by 0.1·N·μ ≥ 16, for 120 users
    accountant = PLDAccountant()
    for release in statistics:
        accountant.compose(GaussianDpEvent(release["noise_multiplier"]))
        assert release["epsilon_after"] == pytest.approx(
            accountant.get_epsilon(found["delta"]), rel=0.02
        )
    event = GaussianDpEvent(training["noise_multiplier"])
    accountant.compose(PoissonSampledDpEvent(training["sampling_probability"], event), 5)
    reached = accountant.get_epsilon(found["delta"])
    assert target * (1 - 5e-3) < reached <= target
    assert statistics[-1]["epsilon_after"] < training["epsilon_after"] <= target
    assert training["epsilon_after"] == pytest.approx(reached, rel=1e-3)


def test_uploads_are_counted_in_bytes(planned):
    found = planned()
    popularity, together, training = found["releases"]
    compared = 2 * int(0.1 * found["population_size"] / together["noise_multiplier"])
    assert popularity["upload_bytes"] == 4 * 2 * found["items"]
    assert together["upload_bytes"] == 4 * compared * (compared - 1)
    assert found["compared_items"] == compared
    assert planned(epsilon=0.5)["compared_items"] is None
    assert training["upload_bytes"] == 4 * found["weights"]


def test_shares_are_those_of_the_noise(planned):
    given = {"popularity": 0.1, "cooccurrence": 0.6}
    found = planned(split=given)
    assert found["split"] == {**given, "training": pytest.approx(0.3)}
    first, second, _ = (release["noise_multiplier"] ** -2 for release in found["releases"])
    assert second / first == pytest.approx(6)


def test_more_budget_promises_more_signal(planned):
    strict, lax = planned(epsilon=0.5), planned(epsilon=8.0)
    for end in (0, -1):  # popularity and training
        one, other = strict["releases"][end], lax["releases"][end]
        assert one["expected_signal_to_noise"] < other["expected_signal_to_noise"]


def test_without_privacy_there_is_nothing_to_spend(planned):
    found = planned(enabled=False)
    json.dumps(found, allow_nan=False)
    assert found["split"] is None
    assert [release["epsilon_after"] for release in found["releases"]] == [None] * 3
    assert found["releases"][-1]["clip_norm"] is None


def test_a_budget_that_allows_nothing_is_refused(planned):
    with pytest.raises(BudgetError):
        planned(epsilon=1.0, noise_multiplier=0.5)


@pytest.mark.parametrize(
    "privacy", [{}, {"enabled": False}, {"split": {"popularity": 0.0}}, {"epsilon": 0.01}]
)
def test_the_table_fits_a_terminal(planned, privacy):
    out = io.StringIO()
    show(planned(**privacy), Console(file=out, width=80))
    assert "training" in out.getvalue()
    assert "…" not in out.getvalue()


def test_the_command_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "[data]\nsynthetic_users = 60\nsynthetic_items = 30\n[training]\nrounds = 2\n"
    (tmp_path / "run.toml").write_text(small)
    arguments = ["--config", "run.toml", "--plan", "--json", "--epsilon", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["target_epsilon"] == 3
    assert math.isclose(found["releases"][-1]["epsilon_after"], 3, rel_tol=5e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
