import contextlib

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fedprofile.client import device_cli
from fedprofile.client.device import Device
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.service_lock import is_served
from fedprofile.common.errors import DeviceError, StoreError


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_device_that_runs_ranks_with_one_thread(make_device, monkeypatch):
    folder, seen = make_device().folder, []

    class Stop:
        def wait(self, seconds):
            seen.append(blas_threads())
            return True

    monkeypatch.setattr(device_cli, "stopped_by_signals", lambda: contextlib.nullcontext(Stop()))
    with threadpool_limits(2, "blas"):
        device_cli.run(folder.path)
        assert seen == [{1}]
        assert blas_threads() == {2}


def test_a_device_that_runs_goes_on_where_its_store_is_busy(make_device, monkeypatch, capsys):
    folder, looks = make_device().folder, []

    class Stop:
        def wait(self, seconds):
            looks.append(is_served(folder))
            return len(looks) == 3

    class Busy(Device):
        def status(self):
            if looks == [True]:
                raise StoreError("another process holds the store")
            return super().status()

    monkeypatch.setattr(device_cli, "stopped_by_signals", lambda: contextlib.nullcontext(Stop()))
    monkeypatch.setattr(device_cli, "Device", Busy)
    device_cli.run(folder.path)
    assert looks == [True, True, True]
    assert "another process holds the store" in capsys.readouterr().err


def test_a_device_that_cannot_be_made_whole_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "phone"

    class NoKeyring(Device):
        def status(self):
            raise DeviceError("no keyring")

    with monkeypatch.context() as patch:
        patch.setattr(device_cli, "Device", NoKeyring)
        with pytest.raises(DeviceError, match="no keyring"):
            device_cli.init(path, keyring=True)
    assert not path.exists()
    device_cli.init(path)
    assert DeviceFolder.open(path).store.exists()
