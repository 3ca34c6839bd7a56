import os
import stat

import pytest

from ntkit.runs import atomic_write


def test_writes_bytes_and_text(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"\x00\x01")
        assert not (tmp_path / "a").exists()
    with atomic_write(tmp_path / "b", "w") as file:
        file.write("κ\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\x01"
    assert (tmp_path / "b").read_bytes() == "κ\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write():
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_permissions_respect_umask_and_the_old_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a"):
            pass
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
        (tmp_path / "a").chmod(0o604)
        with atomic_write(tmp_path / "a"):
            pass
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_a_link_keeps_pointing_at_its_file(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_unwritable_paths_are_named_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    cases = {
        tmp_path / "none" / "a": FileNotFoundError,
        tmp_path / "file" / "a": NotADirectoryError,
        tmp_path: IsADirectoryError,
        "/proc/a": OSError,
        "/dev/null": OSError,
    }
    for path, kind in cases.items():
        with pytest.raises(kind) as caught, atomic_write(path):
            pass
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert ".tmp" not in str(caught.value)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_mode_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="mode: expected 'wb' or 'w', got 'a'"), atomic_write(tmp_path / "a", "a"):
        pass
