import jax
import numpy as np
import pytest

import ntkit
from ntkit.data import Standardize, of_pixels


def test_is_the_kernel_of_preprocessed_images() -> None:
    x = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype("f")
    preprocessing = Standardize.fit(x)
    inner = ntkit.ntk(ntkit.fc(1))
    kernel = of_pixels(inner, preprocessing)
    seen = preprocessing.transform(x)
    np.testing.assert_allclose(kernel(x), inner(seen), rtol=1e-5)
    np.testing.assert_allclose(kernel(x, x[:2]), inner(seen, seen[:2]), rtol=1e-5)
    np.testing.assert_allclose(kernel.diagonal(x), inner.diagonal(seen), rtol=1e-5)
    assert kernel.engine == inner.engine
    y = np.eye(6, 2, dtype="f")
    model, other = ntkit.regression.fit(kernel, x, y, 1e-3), ntkit.regression.fit(inner, seen, y, 1e-3)
    np.testing.assert_allclose(model(x[:3]), other(seen[:3]), atol=1e-3)
    # A pytree, with the statistics of the preprocessing as leaves.
    np.testing.assert_allclose(jax.jit(lambda kernel: kernel(x))(kernel), kernel(x), rtol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="of_images: got 1"):
        of_pixels(1, Standardize.fit(np.ones((2, 2, 2, 1), "f") * np.arange(2)[:, None, None, None]))
    with pytest.raises(ValueError, match="preprocessing: got 'zca'"):
        of_pixels(ntkit.ntk(ntkit.fc(1)), "zca")
