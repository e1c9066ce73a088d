"""Which round was best, and for how long none was better."""

import math

import pytest
import torch
from safetensors.torch import save

from fedprofile.common.errors import RunFolderError
from fedprofile.simulations.progress import Progress, measured_rounds
from fedprofile.simulations.synthetic import synthesise


@pytest.fixture(scope="module")
def log():
    return synthesise(10, 8, seed=0)


@pytest.fixture
def begin(tmp_path, log):
    """Progress in a folder, again with each call."""

    def begin(patience, **named):
        return Progress.open(tmp_path / "progress.json", log, patience=patience, **named)

    return begin


def weights(number):
    return {"layer": torch.full((2, 3), float(number)), "東京": torch.tensor(float(number))}


def fill(progress, qualities):
    for number, quality in qualities.items():
        progress.add(number, quality, weights(number))
    return progress


@pytest.mark.parametrize(
    ("qualities", "best", "since"),
    [
        ({2: 0.1}, 2, 0),
        ({2: 0.1, 4: 0.3, 6: 0.2}, 4, 1),
        ({2: 0.1, 4: 0.1, 6: 0.1}, 2, 2),  # level is not better
        ({2: 0.0, 4: -0.0}, 2, 1),
        ({2: None, 4: 0.1, 6: None, 8: math.nan}, 4, 2),
        ({2: math.nan, 4: 0.0}, 4, 0),
        ({2: 0.3, 10: 0.2, 100: 0.4}, 100, 0),  # by number, not as text
    ],
)
def test_the_first_of_the_best_is_kept(begin, qualities, best, since):
    for progress in (fill(begin(3), qualities), begin(3)):
        assert progress.best == best
        assert progress.weights().keys() == weights(best).keys()
        assert all(torch.equal(w, weights(best)[n]) for n, w in progress.weights().items())
    assert begin(since + 1).enough() is None
    if since:
        told = f"validation was best at round {best}, {since} measurement{'s' * (since > 1)} ago"
        assert begin(since).enough() == told


@pytest.mark.parametrize("qualities", [{}, {2: None, 4: None}, {2: math.nan}])
def test_without_a_figure_nothing_is_best_and_nothing_stops(begin, qualities):
    progress = fill(begin(1), qualities)
    assert (progress.best, progress.enough()) == (None, None)


def test_without_patience_figures_alone_are_kept(begin, tmp_path):
    progress = fill(begin(None), {2: 0.3, 4: 0.2, 6: 0.1})
    assert begin(None).validation == {2: 0.3, 4: 0.2, 6: 0.1}
    assert (progress.best, progress.enough()) == (None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_weights_of_another_round_are_not_taken_for_the_best(begin, tmp_path):
    fill(begin(1), {2: 0.3})
    kept = (tmp_path / "progress.safetensors").read_bytes()
    progress = fill(begin(1), {4: 0.4})
    (tmp_path / "progress.safetensors").write_bytes(kept)
    for read in (progress.weights, lambda: begin(1)):
        with pytest.raises(RunFolderError, match="it is of round 2, and round 4 was better"):
            read()
    for content in (b"", kept[:-1], b"nonsense", save({}), None):
        (tmp_path / "progress.safetensors").unlink()
        if content is not None:
            (tmp_path / "progress.safetensors").write_bytes(content)
        for read in (progress.weights, lambda: begin(1)):
            with pytest.raises(RunFolderError, match=r"progress\.safetensors: .*put the file back"):
                read()
        (tmp_path / "progress.safetensors").touch()
    begin(None)  # where nothing is chosen nobody needs it


class Killed(BaseException):
    pass


@pytest.mark.parametrize("again", [0.1, 0.3, 0.5])
def test_a_round_that_is_measured_again_takes_no_weights_away(begin, monkeypatch, again):
    """Killed between weights and figure; another number of threads, and its figure is another one."""

    def die(self):
        raise Killed

    progress = fill(begin(2), {2: 0.2})
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "_write", die)
        with pytest.raises(Killed):
            fill(progress, {4: 0.3})
    assert begin(2).validation == {2: 0.2, 4: 0.3}  # it is known, and needn't be measured again
    for progress in (fill(begin(2), {4: again}), begin(2)):
        assert progress.best == 4
        assert torch.equal(progress.weights()["東京"], torch.tensor(4.0))
        assert progress.validation == {2: 0.2, 4: again}
    assert fill(begin(2), {6: 0.25, 8: 0.28}).enough() is not None


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b'{"data": ', b'{"data": "", "validation": {"2": "x"}}']
)
def test_figures_that_are_lost_are_asked_for_where_validation_chooses(begin, tmp_path, content):
    fill(begin(1), {2: 0.3, 4: 0.4})
    path = tmp_path / "progress.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"progress\.json: .*put it back, or start a new run"):
        begin(1, begun=True)
    assert path.exists() == (content is not None)
    # Without patience they are told and decide nothing.
    if content is None:
        assert begin(None, begun=True).validation == {}
    else:
        with pytest.raises(RunFolderError, match="remove it to go on without it"):
            begin(None, begun=True)


def test_a_run_without_rounds_has_no_figures_to_lose(begin, tmp_path):
    begin(1)
    (tmp_path / "progress.json").unlink()
    assert begin(1, begun=False).validation == {}


@pytest.mark.parametrize("rounds", [1, 3, 9, 10, 11, 19, 20, 25, 99, 101, 1500])
def test_a_run_is_measured_ten_times_and_after_its_last_round(rounds):
    measured = sorted(measured_rounds(rounds))
    assert len(measured) == min(rounds, 10)
    assert measured[-1] == rounds
    gaps = [after - before for before, after in zip([0, *measured], measured, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


def test_a_run_without_rounds_is_not_measured_on_the_way():
    assert measured_rounds(0) == set()
