import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import regression
from ntkit.kernels import Kernel, memory
from ntkit.solvers import Recomputed

RNG = np.random.default_rng(0)
X, SUPPORT, WEIGHTS = (RNG.normal(size=shape).astype(np.float32) for shape in ((13, 3), (37, 3), (37, 2)))


@ntkit.pytree_dataclass
class Recording(Kernel):
    """A kernel that says which shapes it was compiled for."""

    scale: float
    shapes: list = dataclasses.field(metadata={"static": True}, hash=False, compare=False)

    def gram(self, x1, x2):
        self.shapes.append((len(x1), len(x1 if x2 is None else x2)))
        return jnp.exp(-self.scale * jnp.sum((x1[:, None] - (x1 if x2 is None else x2)) ** 2, -1))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    """40 pairs fit in a tile."""
    monkeypatch.setattr(memory, "TILE", 40 * 12)


@pytest.mark.parametrize("count", [1, 13])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_predictor_of_a_large_support(count: int, compiled: bool) -> None:
    """In tiles, inside `jit` too, with a gradient that is also in tiles."""
    kernel = Recording(0.3, [])
    whole = Recording(0.3, []).gram(X[:count], SUPPORT)

    def predict(x, support, scale):
        model = regression.Predictor(dataclasses.replace(kernel, scale=scale), support, WEIGHTS, 0.0)
        return model(x)

    def exact(x, support, scale):
        return dataclasses.replace(kernel, scale=scale, shapes=[]).gram(x, support) @ WEIGHTS

    arguments = jnp.asarray(X[:count]), jnp.asarray(SUPPORT), 0.3
    np.testing.assert_allclose((jax.jit(predict) if compiled else predict)(*arguments), whole @ WEIGHTS, atol=1e-5)
    assert kernel.shapes
    assert all(rows * columns <= 40 for rows, columns in kernel.shapes)
    if compiled:
        found, expected = (
            jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2)))(*arguments) for f in (predict, exact)
        )
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block_size", [None, 5, 100])
def test_recomputed_equals_the_whole(block_size) -> None:
    """The exact diagonal too: a rectangular block knows no better than an arccos near 1."""
    kernel = ntkit.ntk(ntkit.fc(1))
    operator = Recomputed(kernel, jnp.asarray(SUPPORT), None, block_size)
    whole = np.asarray(kernel(SUPPORT))
    np.testing.assert_allclose(operator.matvec(jnp.eye(37)), whole, atol=2e-6)
    np.testing.assert_allclose(np.diag(operator.matvec(jnp.eye(37))), np.diag(whole), rtol=1e-6)
    chosen = np.array([36, 0, 7, 7, 20, 3])
    np.testing.assert_allclose(operator.columns(chosen), whole[:, chosen], atol=1e-6)
    np.testing.assert_allclose(operator.diagonal(), np.diag(whole), rtol=1e-6)


def test_half_of_the_tiles_are_computed() -> None:
    kernel, calls = Recording(0.3, []), []

    @ntkit.pytree_dataclass
    class Counting(Recording):
        def gram(self, x1, x2):
            jax.debug.callback(lambda: calls.append(1))
            return super().gram(x1, x2)

    operator = Recomputed(Counting(0.3, kernel.shapes), jnp.asarray(SUPPORT))
    operator.diagonal()
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(operator.matvec(jnp.asarray(WEIGHTS)))
    jax.effects_barrier()
    assert len(calls) == 7 * 8 // 2  # a side of 6 inputs: 7 tiles of 37


def test_a_batch_without_tiles_is_one_call() -> None:
    kernel = Recording(0.3, [])
    np.testing.assert_allclose(
        kernel.matmul(X[:2], SUPPORT[:20], WEIGHTS[:20]),
        Recording(0.3, []).gram(X[:2], SUPPORT[:20]) @ WEIGHTS[:20],
        atol=1e-5,
    )
    assert kernel.shapes == [(2, 20)]
