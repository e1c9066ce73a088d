import pytest

from fedprofile.common.files import write_atomically


def test_content_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "猫.json"
    for content in (b"old", b"", b"new\x00"):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert [entry.name for entry in tmp_path.iterdir()] == ["猫.json"]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_keeps_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "nowhere" / "state", b"")


def test_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    from pathlib import Path

    replace = Path.replace
    monkeypatch.setattr("os.fsync", lambda _: done.append("sync"))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (done.append("rename"), replace(self, to))[1]
    )
    write_atomically(tmp_path / "state", b"new")
    assert done == ["sync", "rename", "sync"]
