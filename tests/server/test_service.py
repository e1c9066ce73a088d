"""What the service bounds before it asks devices for anything."""

import threading

import pytest

from fedprofile.common.messages import CooccurrenceTask
from fedprofile.server.service import Service


@pytest.mark.parametrize(("devices", "most"), [(3, 2_048), (1_000, 518), (100_000, 51)])
def test_what_all_devices_send_of_one_statistic_fits_into_memory(server, devices, most):
    config = server.config
    federation = config.federation.model_copy(update={"population_size": devices})
    service = Service(server, threading.Event())
    service._config = config.model_copy(update={"federation": federation})
    assert service._largest_head == most
    assert devices * 4 * CooccurrenceTask.pairs(most) <= 2**29
