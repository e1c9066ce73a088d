import contextlib

from threadpoolctl import threadpool_info, threadpool_limits

from fedprofile.client import device_cli


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
