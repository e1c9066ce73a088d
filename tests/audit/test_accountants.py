"""The process that calculates: what it tells in time counts, whatever becomes of it."""

import sys

import pytest

from fedprofile.audit import accountants
from fedprofile.audit.accountants import ACCOUNTANTS, RDP, Accountants
from fedprofile.common.mechanism import Mechanism

RELEASES = {
    Mechanism(clip_norm=1.0, noise_multiplier=2.0, sampling_probability=1.0, population_size=100): 1
}


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
