import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import ntkit
from ntkit.kernels import Kernel

X1, X2 = random.normal(random.key(0), (7, 3)), random.normal(random.key(1), (4, 3))
FC = ntkit.ntk(ntkit.fc(1))


@pytest.mark.parametrize("block_size", [1, 3, 6, 7, np.int64(5), 100])
def test_blocks_equal_the_whole(block_size: int) -> None:
    whole = FC(X1)
    blocks = ntkit.gram(FC, X1, block_size=block_size)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)
    np.testing.assert_array_equal(blocks, blocks.T)
    np.testing.assert_allclose(ntkit.gram(FC, X1, X2, block_size=block_size), FC(X1, X2), rtol=1e-5)


def test_the_default_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Recording(Kernel):
        def pair_bytes(self, shape, itemsize):
            return 2**30 // 9 if shape == (3,) and itemsize == 4 else 0

        def gram(self, x1, x2):
            shapes.append((len(x1), len(x1 if x2 is None else x2)))
            return x1 @ (x1 if x2 is None else x2).T

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
    ],
)
def test_bad_arguments(arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntkit.gram(*arguments, **options)
