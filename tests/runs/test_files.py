import errno
import os
import stat

import numpy as np
import pytest

from ntkit.runs import Run, atomic_write


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


@pytest.fixture
def small_files():
    """Files of at most 20,000 bytes: beyond, the system refuses like a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [10**3, 10**6])
def test_a_disk_that_is_full_is_said_with_the_path(size, tmp_path, small_files):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write():
        with atomic_write(path) as file:
            # All at once, or when the last of it leaves the buffer.
            for _ in range(30_000 // size + 1):
                file.write(bytes(size))

    with pytest.raises(OSError, match=rf"^\[Errno \d+\] path: cannot write '{path}': File too large$") as caught:
        write()
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_disk_that_is_full_costs_a_run_nothing(tmp_path, small_files):
    run = Run.create(tmp_path / "run", {})
    run.log(1, loss=1.0)
    run.save(1, np.zeros(9))
    with pytest.raises(OSError, match=r"path: cannot write '.*run/checkpoints/00000002\.npz': File too large$"):
        run.save(2, np.zeros(10**4))
    for _ in range(2):
        with pytest.raises(OSError, match=r"path: cannot write '.*run/metrics\.jsonl': "):
            run.log(2, values=np.full(10**4, 0.1))
    run.log(2, loss=0.5)
    assert [record["step"] for record in run.metrics()] == [1, 2]
    assert os.listdir(run.path / "checkpoints") == ["00000001.npz"]
    assert run.restore(np.zeros(9))[0] == 1


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
    with pytest.raises(ValueError, match="mode: got 'a', expected 'wb' or 'w'"), atomic_write(tmp_path / "a", "a"):
        pass
