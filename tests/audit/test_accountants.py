"""The process that calculates: what it tells in time counts, whatever becomes of it."""

import sys

import pytest

from fedprofile.audit import accountants
from fedprofile.audit.accountants import ACCOUNTANTS, FINER, PLD, PRV, RDP, Accountants, Answer
from fedprofile.audit.privacy_checks import check_accountants
from fedprofile.audit.worker import answers
from fedprofile.common.mechanism import Mechanism

RELEASES = {
    Mechanism(clip_norm=1.0, noise_multiplier=2.0, sampling_probability=1.0, population_size=100): 1
}


def question(**described):
    values = {"clip_norm": 1.0, "sampler": "poisson", **described}
    count = values.pop("count", 1)
    return {"releases": [[values, count]], "delta": 1e5**-1.1, "adjacency": "add-or-remove-one"}


def test_the_grid_of_small_losses_is_no_disagreement():
    asked = question(
        noise_multiplier=57.217, sampling_probability=0.004, population_size=100_000, count=2_000
    )
    found = dict(answers(asked, (RDP, PLD, FINER)))
    assert found[FINER].epsilon < found[RDP].epsilon < found[PLD].epsilon
    rest = {"delta": 1e5**-1.1, "private": True}
    told = check_accountants({PRV: Answer(None), **found}, **rest)[-1]
    assert (told.check, told.outcome, "on a finer grid" in told.what) == ("RDP", "holds", True)
    coarse = {PRV: Answer(None), **found, FINER: Answer(found[PLD].epsilon)}
    told = check_accountants(coarse, **rest)[-1]
    assert told.outcome == "fails"
    usual = question(noise_multiplier=2.0, sampling_probability=0.1, population_size=100)
    assert dict(answers(usual, (FINER,)))[FINER].epsilon is None


def test_an_infinite_figure_of_opacus_is_none():
    found = {PLD: Answer(750.0), PRV: Answer(float("inf")), RDP: Answer(760.0)}
    told = check_accountants(found, delta=1e-5, private=True)
    assert [(f.check, f.outcome) for f in told[1:]] == [("PRV", "not run"), ("RDP", "holds")]


@pytest.mark.parametrize(
    ("afterwards", "why"),
    [("exec sleep 60", "it takes too long"), ("kill -9 $$", "it broke down")],
)
def test_an_accountant_that_never_answers_takes_no_other_along(
    monkeypatch, tmp_path, afterwards, why
):
    worker = tmp_path / "worker"
    told = '{"rdp": {"epsilon": 2.5, "why": ""}}'
    worker.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{told}'\n{afterwards}\n")
    worker.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setattr(accountants, "PATIENCE", 1.0)
    with Accountants() as asked:
        found = asked.ask(RELEASES, delta=1e-5, adjacency="add-or-remove-one", cohorts=None)
    assert found.epsilon.keys() == set(ACCOUNTANTS)
    assert found.epsilon.pop(RDP).epsilon == 2.5
    assert {(answer.epsilon, answer.why) for answer in found.epsilon.values()} == {(None, why)}
    assert found.cohorts is None
