import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import attacks, features
from ntkit.data import one_hot

KERNEL = ntkit.ntk(ntkit.fc(1))


def data(n: int = 30, classes: int = 3):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    images = np.clip(0.5 + 0.15 * rng.normal(size=(n, 4, 4, 1)) + 0.2 * (labels[:, None, None, None] - 1), 0, 1)
    return images.astype("f"), labels


def test_sum_to_the_predictor_and_are_orthogonal() -> None:
    x, labels = data()
    y = one_hot(labels, 3)
    found = features.eigenfeatures(KERNEL, x, y)
    assert len(found) == 30
    assert (np.diff(found.eigenvalues) <= 0).all()
    new = data(40)[0][30:]
    whole = ntkit.regression.fit(KERNEL, x, y, 0.0)
    np.testing.assert_allclose(found[:](new), whole(new), atol=1e-3)
    parts = sum(np.asarray(one(new), np.float64) for one in found)
    np.testing.assert_allclose(parts, found[:](new), atol=1e-4)
    np.testing.assert_allclose(found[:7](new) + found[7:](new), found[:](new), atol=1e-4)
    np.testing.assert_allclose(found[[2, 5]](new), found[2](new) + found[5](new), atol=1e-5)
    np.testing.assert_allclose(found.eigenfunctions(x), found.vectors, atol=1e-3)
    np.testing.assert_allclose(found.eigenfunctions(new) @ found.coefficients, found[:](new), atol=1e-3)
    # On the training set feature i is v_i v_iᵀ y.
    values = np.stack([np.asarray(one(x)) for one in found])
    v = np.asarray(found.vectors)
    np.testing.assert_allclose(values, np.einsum("ni,mi,mo->ino", v, v, y), atol=2e-4)
    products = np.einsum("ino,jno->ij", values, values)
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=2e-4)


def test_top_features_are_those_of_the_full_decomposition(tmp_path) -> None:
    x, labels = data()
    y = one_hot(labels, 3)
    full = features.eigenfeatures(KERNEL, x, y)
    gram = np.asarray(KERNEL(x))
    np.save(tmp_path / "gram.npy", gram)
    for given in (None, gram, np.load(tmp_path / "gram.npy", mmap_mode="r")):
        top = features.eigenfeatures(KERNEL, x, y, top=4, gram=given)
        assert len(top) == 4
        np.testing.assert_allclose(top.eigenvalues, full.eigenvalues[:4], rtol=1e-4)
        np.testing.assert_allclose(top[:3](x), full[:3](x), atol=1e-3)
    again = features.eigenfeatures(KERNEL, x, y, top=4)
    np.testing.assert_array_equal(again.vectors, features.eigenfeatures(KERNEL, x, y, top=4).vectors)
    assert len(features.eigenfeatures(KERNEL, x, y, top=29)) == 29


def test_a_spectrum_that_is_known() -> None:
    """Points on a circle: the Gram matrix is circulant, its eigenvalues the Fourier coefficients of its first row."""
    n = 16
    angles = 2 * np.pi * np.arange(n) / n
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype("f")
    y = np.cos(3 * angles)[:, None].astype("f")
    found = features.eigenfeatures(KERNEL, x, y)
    expected = np.sort(np.fft.fft(np.asarray(KERNEL(x), np.float64)[0]).real)[::-1]
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-4)
    # A wave is in the span of its own two eigenvectors.
    shares = features.label_shares(found.vectors, y)
    np.testing.assert_allclose(np.sum(np.sort(shares)[-2:]), 1, atol=1e-5)


def test_eigenvectors_of_near_eigenvalues_are_told_apart() -> None:
    """A Gram matrix of float32 whose small eigenvalues are apart by less than float32's rounding of the largest one."""
    n = 60
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    vectors *= np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0))
    eigenvalues = np.concatenate([[1.0], 3e-5 * (1 + 0.01 * np.arange(n - 1)[::-1])])
    gram = ((vectors * eigenvalues) @ vectors.T).astype("f")
    x, labels = data(n)
    found = features.eigenfeatures(KERNEL, x, one_hot(labels, 3), gram=gram)
    assert len(found) == n
    np.testing.assert_allclose(found.eigenvalues, eigenvalues, rtol=1e-3)
    overlaps = np.abs(np.sum(np.asarray(found.vectors, np.float64) * vectors, 0))
    assert overlaps.min() > 0.95
    by_float32 = np.asarray(jnp.linalg.eigh(jnp.asarray(gram))[1], np.float64)[:, ::-1]
    assert np.abs(np.sum(by_float32 * vectors, 0)).min() < 0.95


def test_copies_have_no_features_of_their_own() -> None:
    x, labels = data()
    x, labels = np.concatenate([x, x[:5]]), np.concatenate([labels, labels[:5]])
    with pytest.warns(features.RankWarning, match="of 35 eigenvalues 5 are zero"):
        found = features.eigenfeatures(KERNEL, x, one_hot(labels, 3))
    assert len(found) == 30
    assert np.isfinite(found[:](x)).all()


@pytest.mark.slow
def test_every_attack_runs_on_features_and_is_compiled_once() -> None:
    x, labels = data()
    found = features.eigenfeatures(KERNEL, x, one_hot(labels, 3))
    ball = attacks.Linf(0.05)
    for model in (found[0], found[3], found[1:9]):
        moved = attacks.PGD(ball, steps=3)(model, x, labels, key=jax.random.key(0))
        assert np.abs(moved - x).max() <= 0.05
        assert jax.tree.structure(model) == jax.tree.structure(found[0])


def test_two_classes() -> None:
    x, labels = data(classes=2)
    found = features.eigenfeatures(KERNEL, x, (2.0 * labels - 1)[:, None].astype("f"))
    assert found[0](x).shape == (30, 1)
    one = features.usefulness(found[:], x, 2 * labels - 1)
    assert one.accuracy == 1
    np.testing.assert_allclose(one.correlation, 1, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top: got 0, expected an integer from 1 to 30"),
        ({"top": 31}, "top: got 31"),
        ({"y": np.zeros((29, 3), "f")}, "y: got shape"),
        ({"kernel": 1}, "kernel: got 1"),
        ({"gram": np.zeros((2, 2), "f")}, "gram: got float32 of shape"),
    ],
)
def test_bad_input(options, message) -> None:
    x, labels = data()
    with pytest.raises(ValueError, match=message):
        features.eigenfeatures(**({"kernel": KERNEL, "x": x, "y": one_hot(labels, 3)} | options))


def test_not_finite_and_not_there() -> None:
    x, labels = data()
    found = features.eigenfeatures(KERNEL, x, one_hot(labels, 3))
    with pytest.raises(IndexError):
        found[30]
    with pytest.raises(FloatingPointError, match="eigenfeatures: not finite"):
        features.eigenfeatures(KERNEL, x, one_hot(labels, 3), gram=jnp.full((30, 30), jnp.nan))
