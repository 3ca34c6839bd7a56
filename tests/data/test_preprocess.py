import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntkit
from ntkit.data import ZCA, Identity, Preprocessing, Standardize, load


def photographs(n: int = 200, size: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Images in [0, 1] whose neighbouring pixels are correlated and whose channels have their own mean and spread."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, size + 2, size + 2, channels))
    x = x[:, 2:, 2:] + 2 * x[:, 1:-1, 1:-1] + x[:, :-2, :-2] + rng.normal(size=(n, 1, 1, 1))
    x = 0.5 + 0.08 * x * np.linspace(0.5, 1.2, channels) + np.linspace(-0.1, 0.1, channels)
    return np.clip(x, 0, 1).astype(np.float32)


def published(x: np.ndarray, standardized_by: np.ndarray, layer_norm: bool) -> np.ndarray:
    """Steps 1 and 2 of the definition, float64, written from the paper: standardized, flattened, unit norm."""
    train = standardized_by.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    z = ((x - train.mean(axis=axes)) / train.std(axis=axes)).reshape(len(x), -1)
    if layer_norm:
        z = z - z.mean(axis=1, keepdims=True)
        z = z / np.sqrt((z**2).sum(axis=1, keepdims=True))
    return z


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("regularization", [0.01, 0.1, 1.0])
def test_zca_against_an_svd_of_the_data(regularization: float, layer_norm: bool) -> None:
    """W from the singular values of the data matrix itself: no covariance is formed, no eigh is called."""
    train, test = photographs(300), photographs(20, seed=1)
    zca = ZCA.fit(train, regularization, layer_norm)
    z = published(train, train, layer_norm)
    _, singular, vt = np.linalg.svd(z, full_matrices=True)
    spectrum = singular**2 / len(z)
    factors = 1 / np.sqrt(spectrum + regularization * spectrum.sum() / z.shape[1])
    expected = published(test, train, layer_norm) @ (vt.T * factors) @ vt
    result = np.asarray(zca.transform(test))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.reshape(len(test), -1), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layer_norm", [True, False])
def test_zca_second_moment_of_the_transformed_data(layer_norm: bool) -> None:
    """Whitened data have second moment C (C + λ tr(C)/d)⁻¹, by a solve in float64."""
    train = photographs(300)
    zca = ZCA.fit(train, 0.1, layer_norm)
    z = published(train, train, layer_norm)
    moment = z.T @ z / len(z)
    expected = np.linalg.solve(moment + 0.1 * np.trace(moment) / len(moment) * np.eye(len(moment)), moment)
    y = np.asarray(zca.transform(train), np.float64).reshape(len(train), -1)
    np.testing.assert_allclose(y.T @ y / len(y), expected, atol=1e-5)


def test_unregularized_zca_whitens_what_the_data_span() -> None:
    train = photographs(400)
    y = np.asarray(ZCA.fit(train, 0.0).transform(train), np.float64).reshape(len(train), -1)
    # Layer normalization takes one direction away, the constant image; all others have second moment 1.
    d = y.shape[1]
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(d) - np.ones((d, d)) / d, atol=2e-4)


def test_directions_that_few_images_cannot_span_are_left_alone() -> None:
    train = photographs(20)
    zca = ZCA.fit(train, 0.1)
    z = published(train, train, True)
    d = z.shape[1]
    orthogonal = np.linalg.svd(z, full_matrices=True)[2][20:]
    np.testing.assert_allclose(orthogonal @ np.asarray(zca.whitening), orthogonal, atol=1e-3)
    np.testing.assert_allclose(zca.whitening @ zca.unwhitening, np.eye(d), atol=1e-4)
    np.testing.assert_allclose(zca.transform(zca.inverse(zca.transform(train))), zca.transform(train), atol=1e-3)


def test_zca_is_symmetric_and_standardizing_before_changes_nothing() -> None:
    train = photographs()
    zca = ZCA.fit(train)
    np.testing.assert_allclose(zca.whitening, zca.whitening.T, atol=1e-5)
    standardized = np.asarray(Standardize.fit(train).transform(train))
    np.testing.assert_allclose(ZCA.fit(standardized).transform(standardized), zca.transform(train), atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.001, 10.0), st.integers(0, 100))
def test_inverse_of_zca_without_layer_norm(regularization: float, seed: int) -> None:
    train = photographs(80, 4, 1)
    zca = ZCA.fit(train, regularization, layer_norm=False)
    x = photographs(5, 4, 1, seed)
    np.testing.assert_allclose(zca.inverse(zca.transform(x)), x, atol=1e-4)
    np.testing.assert_allclose(zca.transform(zca.inverse(x)), x, atol=1e-3)


def test_inverse_of_zca_with_layer_norm_keeps_all_but_brightness_and_contrast() -> None:
    train = photographs(300)
    zca = ZCA.fit(train)
    x = zca.transform(train)
    pictures = zca.inverse(x)
    np.testing.assert_allclose(zca.transform(pictures), x, atol=1e-3)
    # What is lost is one offset and one factor per image, in standardized units.
    standardize = Standardize(zca.mean, zca.std)
    back = np.asarray(standardize.transform(pictures)).reshape(300, -1)
    original = np.asarray(standardize.transform(train)).reshape(300, -1)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(back, original, strict=True)]
    np.testing.assert_allclose(correlation, 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), zca.norm, rtol=1e-4)
    contrasts = np.linalg.norm(original - original.mean(axis=1, keepdims=True), axis=1)
    np.testing.assert_allclose(zca.norm, contrasts.mean(), rtol=1e-5)


def test_zca_ignores_brightness_and_contrast() -> None:
    train = photographs()
    standardized = np.asarray(Standardize.fit(train).transform(train))
    zca = ZCA.fit(standardized)
    np.testing.assert_allclose(zca.transform(3 * standardized - 1), zca.transform(standardized), atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_flat_image_becomes_zero_and_has_a_finite_gradient(value: float) -> None:
    zca = ZCA.fit(photographs(channels=1))
    flat = jnp.full((2, 6, 6, 1), value)
    np.testing.assert_array_equal(zca.transform(flat), np.zeros((2, 6, 6, 1)))
    assert jnp.isfinite(jax.grad(lambda x: zca.transform(x).sum())(flat)).all()


def test_flat_images_among_the_training_images() -> None:
    train = photographs(channels=1)
    train[3] = 0.7
    zca = ZCA.fit(train)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(zca))


def test_standardize() -> None:
    train = photographs()
    standardize = Standardize.fit(train)
    y = np.asarray(standardize.transform(train), np.float64)
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(standardize.mean, train.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(standardize.inverse(y), train, atol=1e-6)


def test_a_constant_channel_is_centred_only() -> None:
    train = photographs()
    train[..., 1] = 0.3
    y = np.asarray(Standardize.fit(train).transform(train))
    np.testing.assert_allclose(y[..., 1], 0, atol=1e-6)
    assert np.isfinite(ZCA.fit(train).transform(train)).all()


def test_vectors() -> None:
    x = photographs().reshape(200, -1)
    np.testing.assert_allclose(np.asarray(Standardize.fit(x).transform(x)).std(axis=0), 1, atol=1e-4)
    z = published(x, x, True)
    moment = z.T @ z / len(z)
    y = np.asarray(ZCA.fit(x).transform(x), np.float64)
    expected = np.linalg.solve(moment + 0.1 * np.trace(moment) / len(moment) * np.eye(len(moment)), moment)
    np.testing.assert_allclose(y.T @ y / len(y), expected, atol=1e-5)


def test_fitting_in_blocks_is_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    train = photographs()
    whole = ZCA.fit(train)
    monkeypatch.setattr("ntkit.data.preprocess._FIT_BLOCK", 37)
    np.testing.assert_allclose(ZCA.fit(train).whitening, whole.whitening, rtol=1e-4, atol=1e-5)


def test_digits() -> None:
    """Real images, of which some pixels are always 0."""
    digits = load("digits")
    zca = ZCA.fit(digits.train.images)
    x = zca.transform(digits.test.images)
    assert jnp.isfinite(x).all()
    np.testing.assert_allclose(zca.transform(zca.inverse(x)), x, atol=1e-3)


@pytest.fixture(params=["Identity", "Standardize", "ZCA", "ZCA without layer norm"])
def fitted(request: pytest.FixtureRequest) -> Preprocessing:
    train = photographs(100, 4)
    made: dict[str, Preprocessing] = {
        "Identity": Identity(),
        "Standardize": Standardize.fit(train),
        "ZCA": ZCA.fit(train, 0.05),
        "ZCA without layer norm": ZCA.fit(train, layer_norm=False),
    }
    return made[request.param]


@pytest.mark.slow
def test_jit_grad_and_vmap(fitted: Preprocessing) -> None:
    x = jnp.asarray(photographs(5, 4, seed=2))
    y = fitted.transform(x)
    np.testing.assert_allclose(jax.jit(lambda p, x: p.transform(x))(fitted, x), y, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(fitted.transform)(x), y, atol=1e-5)
    np.testing.assert_allclose(fitted.transform(x[None])[0], y, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(fitted.inverse)(y), fitted.inverse(y), atol=1e-5)

    def f(x: jax.Array) -> jax.Array:
        return (jnp.sin(jnp.arange(x.size).reshape(x.shape)) * fitted.transform(x)).sum()

    direction = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    slope = jnp.vdot(jax.grad(f)(x), direction)
    step = 1e-3
    numeric = (f(x + step * direction) - f(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=2e-2, atol=0.2)


def test_saved_and_loaded_bit_for_bit(fitted: Preprocessing, tmp_path: Path) -> None:
    ntkit.save(fitted, tmp_path / "fitted.npz")
    again = ntkit.load(tmp_path / "fitted.npz")
    assert jax.tree.structure(again) == jax.tree.structure(fitted)
    x = photographs(3, 4, seed=4)
    np.testing.assert_array_equal(again.transform(x), fitted.transform(x))
    np.testing.assert_array_equal(again.inverse(x), fitted.inverse(x))


@pytest.mark.parametrize("kind", [Standardize, ZCA])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.where(np.arange(len(x))[:, None, None, None] == 7, np.nan, x), "the first at index 7"),
        (lambda x: np.where(np.arange(len(x))[:, None, None, None] == 7, np.inf, x), "the first at index 7"),
        (lambda x: x[0], "got shape"),
        (lambda x: x[:1], "got 1 image, expected at least 2"),
        (lambda x: (255 * x).astype(np.uint8), "got dtype uint8"),
    ],
)
def test_bad_training_images_are_named(kind: type[Standardize], change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^images: .*{message}"):
        kind.fit(change(photographs()))


@pytest.mark.parametrize("regularization", [-0.1, np.nan, np.inf])
def test_bad_regularization_is_named(regularization: float) -> None:
    with pytest.raises(ValueError, match=r"^regularization: got .*, expected a finite number of at least 0"):
        ZCA.fit(photographs(), regularization)


def test_nothing_but_flat_images() -> None:
    flat = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 1), np.float32)
    with pytest.raises(ValueError, match=r"^images: got images that are all flat"):
        ZCA.fit(flat)


def test_another_image_shape() -> None:
    train = photographs()
    with pytest.raises(ValueError, match=r"x: got shape \(2, 7, 6, 3\), expected \(…, 6, 6, 3\)"):
        ZCA.fit(train).transform(jnp.zeros((2, 7, 6, 3)))
    with pytest.raises(ValueError, match=r"x: got shape \(2, 6, 6, 1\), expected \(…, 3\)"):
        Standardize.fit(train).inverse(jnp.zeros((2, 6, 6, 1)))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_standard_deviation_that_no_fit_gives(value: float) -> None:
    images = np.random.default_rng(0).uniform(size=(9, 4, 4, 2)).astype(np.float32)
    for fitted in (Standardize.fit(images), ZCA.fit(images)):
        with pytest.raises(ValueError, match=r"^std: got .*, expected finite numbers above 0"):
            dataclasses.replace(fitted, std=np.array([1.0, value], np.float32))
        with pytest.raises(ValueError, match=r"^mean: got (nan|-?inf), expected finite numbers"):
            dataclasses.replace(fitted, mean=np.array([0, np.nan]))


def test_arrays_of_other_shapes() -> None:
    images = np.random.default_rng(0).uniform(size=(9, 4, 4, 2)).astype(np.float32)
    fitted = ZCA.fit(images)
    for name, value in {"whitening": np.eye(3), "norm": np.ones(2), "shape": np.array([4, 4, 3]), "std": "x"}.items():
        with pytest.raises(ValueError, match=r"^\w+: got "):
            dataclasses.replace(fitted, **{name: value})
    # Inside of compiled code nothing is looked at.
    assert jax.jit(lambda p, x: p.transform(x))(fitted, images).shape == images.shape
