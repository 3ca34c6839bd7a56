"""Kernels of neural-tangents, which hold all pixel pairs, in blocks of bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.kernels import memory

X1, X2 = (np.random.default_rng(i).normal(size=(n, 5, 4, 2)).astype(np.float32) for i, n in enumerate((13, 9)))
ARCHITECTURE = ntkit.convnet(1)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda: ntkit.ntk(ARCHITECTURE, engine="neural_tangents"), id="architecture", marks=pytest.mark.slow
        ),
        pytest.param(lambda: ntkit.from_stax(ARCHITECTURE.stax()[2]), id="stax"),
    ],
)
@pytest.mark.parametrize("pairs", [pytest.param(1, marks=pytest.mark.slow), 60])
def test_equal_to_one_piece(make, pairs, monkeypatch) -> None:
    pytest.importorskip("neural_tangents")
    kernel = make()
    whole, own, slope = kernel(X1, X2), kernel(X1), jax.grad(lambda x: jnp.sum(kernel(x, X2) ** 2))(jnp.asarray(X1))
    each = 4 * 20**2 * (6 if kernel.engine == "neural_tangents" and hasattr(kernel, "architecture") else 4)
    monkeypatch.setattr(memory, "TILE", pairs * each)
    jax.clear_caches()
    np.testing.assert_allclose(kernel(X1, X2), whole, rtol=1e-5)
    np.testing.assert_allclose(kernel(X1), own, rtol=1e-5)
    assert (np.asarray(kernel(X1)) == np.asarray(kernel(X1)).T).all()
    found = jax.grad(lambda x: jnp.sum(kernel(x, X2) ** 2))(jnp.asarray(X1))
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


def test_products_of_wrapped_kernels_are_those_of_what_is_wrapped() -> None:
    from ntkit.data import Standardize, of_pixels

    v = np.random.default_rng(5).normal(size=(9, 3)).astype(np.float32)
    inner = ntkit.ntk(ARCHITECTURE)
    asked = []

    @ntkit.pytree_dataclass
    class Own(ntkit.Kernel):
        def gram(self, x1, x2):
            return inner.gram(x1, x2)

        def gram_matmul(self, x1, x2, v):
            asked.append(len(x1))
            return inner.matmul(x1, x2, v)

    for kernel in (Own(), 2.0 * Own(), of_pixels(Own(), Standardize.fit(X1))):
        asked.clear()
        np.testing.assert_allclose(kernel.matmul(X1, X2, v), kernel(X1, X2) @ v, rtol=1e-4, atol=1e-4)
        assert asked == [13]
        assert kernel.multiplies_by_itself(13, 9, 3)
    assert not inner.multiplies_by_itself(13, 9, 3)
    for bad in (v[:5], v[:, 0], v * 1j, "v"):
        with pytest.raises(ValueError, match=r"^v: got "):
            inner.matmul(X1, X2, bad)
