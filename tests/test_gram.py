import contextlib
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import ntkit
from ntkit.grams import StoreWarning, blocks, store
from ntkit.grams.tiles import cut
from ntkit.kernels import Kernel, memory

X1, X2 = random.normal(random.key(0), (7, 3)), random.normal(random.key(1), (4, 3))
FC = ntkit.ntk(ntkit.fc(1))
LINEAR = ntkit.nngp(ntkit.fc(0))


@pytest.mark.parametrize("block_size", [1, 3, 6, 7, np.int64(5), 100])
def test_blocks_equal_the_whole(block_size: int) -> None:
    whole = FC(X1)
    blocks = ntkit.gram(FC, X1, block_size=block_size)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)
    np.testing.assert_array_equal(blocks, blocks.T)
    # Rounding depends on the shape of a block, and one entry is 10,000 times smaller than the largest.
    np.testing.assert_allclose(ntkit.gram(FC, X1, X2, block_size=block_size), FC(X1, X2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_entry_is_in_one_block_and_all_blocks_have_one_shape(symmetric: bool) -> None:
    for n1, n2, side in itertools.product(range(1, 11), repeat=3):
        if symmetric and n1 != n2:
            continue
        tiling = cut(n1, n2, side, symmetric)
        assert max(tiling.rows, tiling.columns) <= side
        times = np.zeros((n1, n2), int)
        inputs = np.arange(n1)[:, None] * n2 + np.arange(n2)
        for tile in tiling.tiles():
            block = inputs[tile.left, tile.right]
            assert block.shape == (tiling.rows, tiling.columns)
            np.testing.assert_array_equal(tile.owned(block), inputs[tile.rows, tile.columns])
            times[tile.rows, tile.columns] += 1
            if symmetric and not tile.diagonal:
                times[tile.columns, tile.rows] += 1
        assert (times == 1).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_memory_map_is_read_in_blocks(dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.asarray(X1, dtype))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    calls = counted(monkeypatch)
    blocks = ntkit.gram(FC, x, block_size=3)
    assert {len(left) for left, _ in calls} == {3}
    assert blocks.dtype == FC(np.asarray(x)).dtype
    np.testing.assert_allclose(blocks, FC(np.asarray(x)), rtol=1e-5)


def counted(monkeypatch: pytest.MonkeyPatch) -> list:
    """Record the arguments of each evaluation of a kernel."""
    calls = []
    evaluate = Kernel.__call__

    def recording(self, x1, x2=None):
        calls.append((x1, x2))
        return evaluate(self, x1, x2)

    monkeypatch.setattr(Kernel, "__call__", recording)
    return calls


def test_the_default_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    @ntkit.pytree_dataclass
    class Recording(Kernel):
        def gram(self, x1, x2):
            shapes.append((len(x1), len(x1 if x2 is None else x2)))
            return x1 @ (x1 if x2 is None else x2).T

    monkeypatch.setattr(memory, "BLOCK", 12 * 7 * 7 - 1)
    monkeypatch.setattr(blocks, "SIDE", 3)
    np.testing.assert_allclose(ntkit.gram(Recording(), X1), X1 @ X1.T, rtol=1e-5)
    assert set(shapes) == {(3, 3)}
    shapes.clear()
    np.testing.assert_allclose(jax.jit(ntkit.gram)(Recording(), X1), X1 @ X1.T, rtol=1e-5)
    assert shapes == [(7, 7)]


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    ntkit.gram(FC, X1, block_size=3, progress=True)
    printed = capsys.readouterr()
    assert not printed.out
    assert "gram" in printed.err


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((FC, np.zeros((2, 3), int)), {}, "x1: got dtype"),
        ((FC, X1, jnp.zeros((2, 4))), {}, r"x2: got inputs of shape \(4,\), expected \(3,\)"),
        ((ntkit.fc(1), X1), {}, "kernel: got Architecture, expected an ntkit"),
        ((FC, X1), {"block_size": 0}, "block_size: got 0, expected an integer of at least 1"),
        ((FC, X1), {"block_size": 2.0}, "block_size: got 2.0"),
        ((FC, X1), {"block_size": True}, "block_size: got True"),
        ((FC, X1), {"mesh": 8}, "mesh: got int, expected a jax.sharding.Mesh"),
        ((FC, [[1.0], [1.0, 2.0]]), {}, "x1: got .*, expected an array of floats"),
    ],
)
def test_bad_arguments(arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntkit.gram(*arguments, **options)


# The store. X has 5 blocks a side of 4, the last of which is cut down to 3: 15 blocks in all.

X = np.random.default_rng(0).standard_normal((19, 3)).astype(np.float32)


def stored(path: Path, kernel: Kernel = LINEAR, x1=X, x2=None, **options) -> np.memmap:
    return ntkit.gram(kernel, x1, x2, **{"block_size": 4, "store": path, **options})


class Stopped(BaseException):
    pass


def stop_after(blocks: int, path: Path, **options) -> None:
    """Leave a store with so many finished blocks."""
    from ntkit.grams.store import Store

    write = Store.write

    def writing(self, tile, block):
        nonlocal blocks
        if blocks == 0:
            raise Stopped
        blocks -= 1
        write(self, tile, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", writing)
        with pytest.raises(Stopped):
            stored(path, **options)


def pending_bytes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(store, "PENDING_BYTES", count)


@pytest.mark.parametrize("x2", [None, np.asarray(X[:7] + 1)])
@pytest.mark.parametrize("pending", [0, 3 * 64, 2**30])
def test_a_store_is_a_memory_map_of_the_matrix(x2, pending, tmp_path, monkeypatch) -> None:
    pending_bytes(monkeypatch, pending)
    matrix = stored(tmp_path / "new" / "store", x2=x2)
    assert isinstance(matrix, np.memmap)
    assert not matrix.flags.writeable
    np.testing.assert_array_equal(matrix, ntkit.gram(LINEAR, X, x2, block_size=4))
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "store" / "gram.npy"), matrix)
    calls = counted(monkeypatch)
    again = stored(tmp_path / "new" / "store", x2=x2, block_size=None)
    np.testing.assert_array_equal(again, matrix)
    assert calls == []


def test_a_store_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys) -> None:
    pending_bytes(monkeypatch, 3 * 64)
    stop_after(7, tmp_path)
    calls = counted(monkeypatch)
    matrix = stored(tmp_path, block_size=None, progress=True)
    assert len(calls) == 15 - 7
    assert "15/15" in capsys.readouterr().err
    np.testing.assert_array_equal(matrix, ntkit.gram(LINEAR, X, block_size=4))
    assert sorted(os.listdir(tmp_path)) == [".lock", "checksums.json", "gram.json", "gram.npy"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel": ntkit.ntk(ntkit.fc(0))}, "its kernel: got .*'nngp'.*, expected .*'ntk'"),
        ({"kernel": ntkit.nngp(ntkit.fc(1))}, "its kernel: got .*, expected .*relu"),
        ({"kernel": ntkit.nngp(ntkit.fc(0, W_std=1.5))}, r"its kernel: got .*1\.41.*, expected .*1\.5"),
        ({"kernel": 2.0 * LINEAR}, "its kernel: got FusedKernel.*, expected Scaled"),
        ({"x1": X + 1}, r"its x1: got float32\[19, 3\] sha256:.*, expected float32\[19, 3\] sha256"),
        ({"x1": X[:18]}, r"its x1: got .*\[19, 3\].*, expected .*\[18, 3\]"),
        ({"x2": X}, r"its x2: got None, expected float32"),
        ({"block_size": 5}, "block_size: got blocks of 5×5, expected None, or the 4×4 that"),
    ],
)
def test_a_store_of_something_else_is_refused(given, message, tmp_path) -> None:
    stop_after(3, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "blocks").iterdir()}
    with pytest.raises(ValueError, match=message):
        stored(tmp_path, **given)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "blocks").iterdir()}


def test_equal_values_are_the_same_kernel_and_the_same_inputs(tmp_path, monkeypatch) -> None:
    kernel = ntkit.nngp(ntkit.fc(0, W_std=1.5))
    stored(tmp_path, kernel)
    calls = counted(monkeypatch)
    stored(tmp_path, ntkit.nngp(ntkit.fc(0, W_std=jnp.float32(1.5))), jnp.asarray(X))
    stored(tmp_path, kernel, X.astype(np.float64))
    assert calls == []


def test_a_network_of_functions_is_known_by_its_values(tmp_path) -> None:
    nt = pytest.importorskip("neural_tangents")

    def kernel(W_std):
        return ntkit.from_stax(nt.stax.serial(nt.stax.Dense(1, W_std), nt.stax.Relu(), nt.stax.Dense(1))[2])

    stored(tmp_path, kernel(1.0))
    stored(tmp_path, kernel(1.0))
    with pytest.raises(ValueError, match="its sample: got"):
        stored(tmp_path, kernel(1.1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("photo.jpg", "", "which contains 'photo.jpg', expected a new or empty directory, or a store"),
        ("gram.json", "{", "which is not whole"),
        ("gram.json", "[" * 100_000, "which is not whole"),
        ("gram.json", '{"format": 7}', "of format 7, expected format 1"),
        ("gram.json", '{"format": 1}', "without block, dtype"),
    ],
)
def test_what_is_no_store_is_left_alone(name, content, message, tmp_path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"store: got .*{message}"):
        stored(tmp_path)
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(ValueError, match=r"store: got .*expected"):
        stored(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [12, 12]}, "its shape: got "),
        ({"symmetric": False}, "its symmetric: got False, expected True"),
        ({"dtype": "float64"}, "its dtype: got float64, expected float32"),
        ({"sample": {"a": 1}}, "its sample: got "),
        ({"block": [0, 0]}, r"gram\.json' with blocks of \[0, 0\]"),
        ({"block": [10**6, 1]}, r"gram\.json' with blocks of \[1000000, 1\]"),
        ({"block": "8"}, r"gram\.json' with blocks of '8'"),
        ({"versions": []}, r"versions \[\], expected a store's manifest"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(change, message, tmp_path) -> None:
    stored(tmp_path)
    path = tmp_path / "gram.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"^store: .*{message}"):
        stored(tmp_path)


def test_a_store_is_not_written_while_traced(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"store: got .* inside jit, grad or vmap, expected None"):
        jax.jit(lambda x: stored(tmp_path, x1=x))(X)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("stop", "harm", "lost"),
    [
        (7, lambda path: truncate(path / "blocks" / "0-1", 50), {"0-1"}),
        (7, lambda path: flip(path / "blocks" / "0-1", 50), {"0-1"}),
        (7, lambda path: shutil.copy(path / "blocks" / "0-1", path / "blocks" / "0-2"), {"0-2"}),
        # In the matrix, where the blocks stand: 1-1 begins in row 4, column 4.
        (7, lambda path: flip(path / "gram.npy.partial", 128 + 4 * (4 * 19 + 4)), {"1-1"}),
        # The mirror image of 0-1 is in row 4, column 0.
        (7, lambda path: flip(path / "gram.npy.partial", 128 + 4 * (4 * 19 + 0)), {"0-1"}),
        (7, lambda path: truncate(path / "gram.npy.partial", 128 + 4 * 19 * 16), {"4-4"}),
        (7, lambda path: (path / "gram.npy.partial").unlink(), {"0-0", "1-1", "2-2", "3-3", "4-4", "0-1", "0-2"}),
        (None, lambda path: truncate(path / "gram.npy", 128 + 4 * 19 * 16), {"4-4", "0-4", "1-4", "2-4", "3-4"}),
    ],
)
def test_damaged_blocks_are_computed_again(stop, harm, lost, tmp_path, monkeypatch) -> None:
    assembled = "partial" in str(harm.__code__.co_consts) or stop is None
    pending_bytes(monkeypatch, 0 if assembled else 2**30)
    expected = ntkit.gram(LINEAR, X, block_size=4)
    if stop is None:
        stored(tmp_path)
    else:
        stop_after(stop, tmp_path)
    harm(tmp_path)
    calls = counted(monkeypatch)
    with pytest.warns(StoreWarning, match=f"{len(lost)} damaged blocks, which are computed again") as warned:
        matrix = stored(tmp_path)
    assert any(name in str(warned[0].message) for name in lost)
    assert len(calls) == len(lost) + (0 if stop is None else 15 - stop)
    np.testing.assert_array_equal(matrix, expected)


def test_other_versions_are_a_warning(tmp_path) -> None:
    stop_after(3, tmp_path)
    manifest = json.loads((tmp_path / "gram.json").read_text())
    manifest["versions"]["jax"] = "0.5.9"
    (tmp_path / "gram.json").write_text(json.dumps(manifest))
    with pytest.warns(StoreWarning, match=r"was begun with jax 0\.5\.9; the blocks to come may differ"):
        stored(tmp_path)


def test_a_full_disk(tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(OSError, match=r"store: .* has 0\.0001 MB free, expected 0\.00\d+ MB") as raised:
            stored(tmp_path)
    assert raised.value.errno == errno.ENOSPC
    sync, calls = os.fsync, itertools.count()

    def full(descriptor):
        if next(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"store: no space left at .* more are needed; finished blocks are kept"):
            stored(tmp_path)
    evaluations = counted(monkeypatch)
    np.testing.assert_array_equal(stored(tmp_path), ntkit.gram(LINEAR, X, block_size=4))
    assert 0 < len(evaluations[:-15]) < 15


def test_one_process_at_a_time_writes_to_a_store(tmp_path) -> None:
    pytest.importorskip("fcntl")
    stop_after(3, tmp_path)
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    code += "; input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="store: another process is writing to"):
            stored(tmp_path)
        other.communicate(b"\n")
    stored(tmp_path)


def test_stopped_at_any_operation_on_files_and_resumed(tmp_path, monkeypatch) -> None:
    """What a kill leaves behind, at each point where it could make a difference."""
    pending_bytes(monkeypatch, 4 * 64)
    x = X[:11]
    expected = ntkit.gram(LINEAR, x, block_size=4)
    left = None

    def until_killed(operation):
        def counting(*arguments, **options):
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    # Nor does a killed process clean up.
                    raise Stopped
            return operation(*arguments, **options)

        return counting

    # A kill does not lose what a disk has not got yet.
    monkeypatch.setattr(os, "fsync", until_killed(lambda descriptor: None))
    for module, name in ((os, "replace"), (os, "unlink"), (os, "chmod"), (Path, "unlink")):
        monkeypatch.setattr(module, name, until_killed(getattr(module, name)))
    calls = counted(monkeypatch)
    for point in itertools.count():
        path, left = tmp_path / str(point), point
        with contextlib.suppress(Stopped):
            stored(path, x1=x)
            break
        left = None
        done = {file.name for file in path.glob("blocks/[!.]*")}
        if (path / "checksums.json").exists():
            done |= json.loads((path / "checksums.json").read_text()).keys()
        before = len(calls)
        np.testing.assert_array_equal(stored(path, x1=x), expected)
        assert len(calls) - before == 6 - len(done)
        assert sorted(os.listdir(path)) == [".lock", "checksums.json", "gram.json", "gram.npy"]
    assert point > 30


KILLS = """
import os, random, signal, sys, time
import numpy as np
import ntkit
from ntkit.grams.store import Store

store, log = sys.argv[1:]
ntkit.grams.store.PENDING_BYTES = 20 * 64
x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
write = Store.write

def logging(self, tile, block):
    write(self, tile, block)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (tile.name + " ").encode())
    os.close(descriptor)

Store.write = logging

def size():
    return os.path.getsize(log) if os.path.exists(log) else 0

def fork(more):
    before = size()
    child = os.fork()
    if child == 0:
        try:
            ntkit.gram(ntkit.nngp(ntkit.fc(0)), x, block_size=4, store=store)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    if more is not None:
        while size() < before + more and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(0.0005)
        time.sleep(dice.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

dice = random.Random(1)
print(sum(fork(dice.uniform(1, 150)) == -signal.SIGKILL for _ in range(3)))
assert fork(None) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_and_resumed(tmp_path, monkeypatch) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", KILLS, store, log],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 3
    written = log.read_text().split()
    # A kill may fall between the block and the log; no block is written twice.
    assert len(set(written)) == len(written) >= 136 - 3
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    expected = ntkit.gram(LINEAR, x, block_size=4)
    calls = counted(monkeypatch)
    np.testing.assert_array_equal(stored(store, x1=x), expected)
    assert calls == []
