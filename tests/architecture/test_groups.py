"""Tests of a group share what takes long to make: one worker runs them all."""

import os

import pytest


@pytest.mark.xdist_group("grouped")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there are no workers")
def test_workers_are_given_groups(request):
    assert request.node.nodeid.endswith("@grouped")
