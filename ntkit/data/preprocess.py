"""Preprocessing fitted on the training images: fit on float64 NumPy, apply as differentiable JAX.

A preprocessing is an immutable pytree: pass it through `jit`, differentiate through `transform` to attack in pixel
space, and store it beside what was computed in its space with `to_arrays`.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_array, check_flag, check_floats, check_integers, check_number, traced, wrong
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.data.checks import check_images

# Below this contrast (root mean square, in units of the training set's standard deviation) an image is flat: what
# is left after its mean is subtracted is rounding, which layer normalization would blow up to a unit vector. One
# pixel of a 32×32 image that is one grey level off its neighbours is 20 times more.
_FLAT = 1e-5

# Images in float64 at a time while fitting: 100 MB for CIFAR-10, whose training set would take 1.2 GB.
_FIT_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Preprocessing(abc.ABC):
    """A map from images, float with values in [0, 1], to what a kernel is fed, with its inverse.

    Subclasses are `Identity`, `Standardize` and `ZCA`. `transform` and `inverse` take any number of leading batch
    axes (so they can be `vmap`ped), keep the shape, return float32, and can be differentiated.
    """

    @abc.abstractmethod
    def transform(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """From pixels to the kernel's inputs."""

    @abc.abstractmethod
    def inverse(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """From the kernel's inputs to pixels."""


@pytree_dataclass(eq=False)
class Identity(Preprocessing):
    """No preprocessing: for code that always has one."""

    def transform(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """`x`, as float32."""
        return jnp.asarray(check_array("x", x), jnp.float32)

    def inverse(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """`x`, as float32."""
        return jnp.asarray(check_array("x", x), jnp.float32)


@pytree_dataclass(eq=False)
class Standardize(Preprocessing):
    """Each channel to mean 0 and standard deviation 1 over the training set: the KIP papers' standard preprocessing.

    Made by `Standardize.fit`. For vectors `(n, d)` every feature is a channel.

    **Fields:**

    - `mean`: float32 (channels,), the mean over training images and pixels.
    - `std`: float32 (channels,), the standard deviation over the same (divided by n, not n − 1), 1 for a channel that
      is constant.
    """

    mean: Float[Array, " channels"]
    std: Float[Array, " channels"]

    def __post_init__(self) -> None:
        _check_moments(self.mean, self.std)

    @classmethod
    def fit(cls, images: Float[ArrayLike, "n ..."]) -> Self:
        """Channel means and standard deviations of training images.

        **Arguments:**

        - `images`: floats (n, height, width, channels) or (n, d), n ≥ 2.

        **Raises:** `ValueError` if `images` is not such an array, is not finite, or holds fewer than 2 images.
        """
        x = _training_images(images)
        mean, std = _channel_moments(x)
        return cls(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))

    def transform(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """`(x − mean) / std`, channel by channel."""
        x = _batch_of(x, (self.mean.shape[0],))
        return (x - _by_channel(self.mean, x)) / _by_channel(self.std, x)

    def inverse(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """`x · std + mean`, channel by channel: exactly the inverse."""
        x = _batch_of(x, (self.mean.shape[0],))
        return x * _by_channel(self.std, x) + _by_channel(self.mean, x)


@pytree_dataclass(eq=False)
class ZCA(Preprocessing):
    """Regularized ZCA whitening, as in the KIP papers.

    Made by `ZCA.fit`. Following the code published with Nguyen, Novak, Xiao & Lee (2021, arXiv:2107.13034;
    regularized ZCA after Shankar et al. 2020, arXiv:2003.02237, and Lee et al. 2020, arXiv:2007.15801), an image is

    1. standardized channel by channel, as by `Standardize`;
    2. flattened to d numbers and layer-normalized: less its own mean, then divided by its own Euclidean norm;
    3. multiplied by W = U (Σ + λ tr(C)/d)^(−1/2) Uᵀ, where C = XᵀX/n = U Σ Uᵀ is the second moment of the n
       training images so prepared. No mean over the training images is subtracted, here or in C.

    Directions that the training images do not span (all past the n-th when n < d, and null directions when λ = 0)
    are left as they are, factor 1.

    **Fields:**

    - `mean`, `std`: float32 (channels,), as in [`Standardize`][].
    - `whitening`, `unwhitening`: float32 (d, d), W and W⁻¹, both symmetric.
    - `norm`: float32 scalar, the training images' average norm in step 2; 1 without layer normalization.
    - `shape`: the shape of one image.
    - `layer_norm`: whether step 2 is done.
    - `regularization`: λ.
    """

    mean: Float[Array, " channels"]
    std: Float[Array, " channels"]
    whitening: Float[Array, "d d"]
    unwhitening: Float[Array, "d d"]
    norm: Float[Array, ""]
    shape: tuple[int, ...] = static_field()
    layer_norm: bool = static_field()
    regularization: float = static_field()

    def __post_init__(self) -> None:
        _check_moments(self.mean, self.std)
        object.__setattr__(self, "shape", check_integers("shape", self.shape))
        size = math.prod(self.shape)
        _check_fitted("whitening", self.whitening, (size, size))
        _check_fitted("unwhitening", self.unwhitening, (size, size))
        _check_fitted("norm", self.norm, (), positive=True)
        if len(self.mean) != self.shape[-1]:
            raise ValueError(f"shape: got {self.shape}, expected {len(self.mean)} channels as mean has")
        check_flag("layer_norm", self.layer_norm)
        check_number("regularization", self.regularization, least=0)

    @classmethod
    def fit(cls, images: Float[ArrayLike, "n ..."], regularization: float = 0.1, layer_norm: bool = True) -> Self:
        """The whitening of training images.

        **Arguments:**

        - `images`: floats (n, height, width, channels) or (n, d), n ≥ 2. Whether they were standardized before makes
          no difference.
        - `regularization`: λ ≥ 0, relative to the mean eigenvalue of C. Default 0.1, the KIP papers' value for
          CIFAR-10.
        - `layer_norm`: False leaves out step 2, which makes `inverse` exact.

        **Raises:** `ValueError` if `images` is not such an array, is not finite, holds fewer than 2 images or nothing
        but flat ones, or if `regularization` is negative or not finite.
        """
        x = _training_images(images)
        regularization = check_number("regularization", regularization, least=0)
        layer_norm = check_flag("layer_norm", layer_norm)
        mean, std = _channel_moments(x)
        moment, norm = _second_moment(x, mean, std, layer_norm)
        if not np.trace(moment) > 0:
            raise ValueError("images: got images that are all flat, expected some contrast")
        whitening, unwhitening = _whitening(moment, regularization, len(x))
        if unwhitening.max() > np.finfo(np.float32).max:
            raise wrong("regularization", regularization, "a finite number of at least 0, and less")
        f32 = jnp.float32
        return cls(
            mean=jnp.asarray(mean, f32),
            std=jnp.asarray(std, f32),
            whitening=jnp.asarray(whitening, f32),
            unwhitening=jnp.asarray(unwhitening, f32),
            norm=jnp.asarray(norm, f32),
            shape=x.shape[1:],
            layer_norm=layer_norm,
            regularization=regularization,
        )

    def transform(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """Steps 1 to 3. A flat image (every pixel the channel's mean, or off it by one constant) goes to 0.

        With layer normalization the brightness and the contrast of `x` make no difference.
        """
        x = _batch_of(x, self.shape)
        z = (x - _by_channel(self.mean, x)) / _by_channel(self.std, x)
        z = z.reshape(*x.shape[: x.ndim - len(self.shape)], -1)
        if self.layer_norm:
            z = _layer_normalized(z)
        return _product(z, self.whitening).reshape(x.shape)

    def inverse(self, x: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
        """A picture of `x` in pixels: W⁻¹, times the training images' average norm, and out of standardization.

        Without layer normalization this is exactly the inverse. With it, each image's own mean and norm are lost:
        the picture has the brightness and contrast of an average training image, and `transform` takes it back to
        `x` whenever `x` is itself a transformed image. Pixels may lie outside [0, 1]: clip them to show them.
        """
        x = _batch_of(x, self.shape)
        z = _product(x.reshape(*x.shape[: x.ndim - len(self.shape)], -1), self.unwhitening)
        return (self.norm * z).reshape(x.shape) * _by_channel(self.std, x) + _by_channel(self.mean, x)


def _by_channel(values: Array, x: Array) -> Array:
    """Lay one number for each channel along the last dimension of `x`."""
    return values.reshape(*(1,) * (x.ndim - 1), -1)


def _check_moments(mean: Any, std: Any) -> None:
    count = np.shape(check_floats("mean", mean))
    if len(count) != 1 or count == (0,):
        raise ValueError(f"mean: got shape {count}, expected (channels,)")
    _check_fitted("mean", mean, count)
    _check_fitted("std", std, count, positive=True)


def _check_fitted(name: str, value: Any, shape: tuple[int, ...], *, positive: bool = False) -> None:
    """Raise `ValueError` unless a fitted array is finite, and above 0 where it divides; but for a traced one."""
    array = check_floats(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}, expected {shape}")
    if not traced(array):
        bad = ~np.isfinite(np.asarray(array)) | (positive & (np.asarray(array) <= 0))
        if bad.any():
            expected = "finite numbers above 0" if positive else "finite numbers"
            raise ValueError(f"{name}: got {np.asarray(array)[bad][0]:g}, expected {expected}")


def check_preprocessing(name: str, preprocessing: Any, shape: tuple[int, ...] | None = None) -> Preprocessing:
    """Give a preprocessing, fitted on inputs of a shape; `ValueError` for anything else, such as the class of one."""
    if not isinstance(preprocessing, Preprocessing):
        raise wrong(name, preprocessing, "one of ntkit.data, such as Standardize, fitted")
    if shape is not None:
        try:
            jax.eval_shape(preprocessing.transform, jax.ShapeDtypeStruct(shape, jnp.float32))
        except ValueError:
            raise ValueError(
                f"{name}: got one fitted on other inputs, expected one for inputs of shape {shape}"
            ) from None
    return preprocessing


def _training_images(images: Any) -> np.ndarray:
    images = check_images("images", images)
    x = np.asarray(images)
    if len(x) < 2:
        raise ValueError(f"images: got {len(x)} image, expected at least 2 to fit a preprocessing")
    return x


def _channel_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all axes but the last, in float64, two passes and no float64 copy of all."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=np.float64)
    count = math.prod(x.shape[:-1])
    blocks = (x[i : i + _FIT_BLOCK].astype(np.float64) for i in range(0, len(x), _FIT_BLOCK))
    std = np.sqrt(sum(np.square(block - mean).sum(axis=axes) for block in blocks) / count)
    # A constant channel has nothing to scale; its computed deviation is rounding, or exactly 0.
    constant = std <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return mean, np.where(constant, 1.0, std)


def _second_moment(x: np.ndarray, mean: np.ndarray, std: np.ndarray, layer_norm: bool) -> tuple[np.ndarray, float]:
    """C = XᵀX/n of the standardized and layer-normalized images, in float64, and the average norm."""
    n, d = len(x), math.prod(x.shape[1:])
    moment = np.zeros((d, d))
    total_norm = 0.0
    for i in range(0, n, _FIT_BLOCK):
        z = ((x[i : i + _FIT_BLOCK].astype(np.float64) - mean) / std).reshape(-1, d)
        if layer_norm:
            z -= z.mean(axis=1, keepdims=True)
            norms = np.linalg.norm(z, axis=1, keepdims=True)
            total_norm += norms.sum()
            z = np.divide(z, norms, out=np.zeros_like(z), where=norms > _FLAT * math.sqrt(d))
        moment += z.T @ z
    return moment / n, total_norm / n if layer_norm else 1.0


def _whitening(moment: np.ndarray, regularization: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """W and its inverse from the second moment of n images."""
    # SciPy takes a while to import, and only fitting needs it.
    from scipy.linalg import eigh

    d = len(moment)
    eigenvalues, vectors = eigh(moment, driver="evd")
    regularized = eigenvalues + regularization * np.trace(moment) / d
    # eigh sorts upwards: the directions that n < d images cannot span come first.
    spanned = (np.arange(d) >= d - n) & (regularized > d * np.finfo(np.float64).eps * regularized[-1])
    scales = np.where(spanned, np.sqrt(np.where(spanned, regularized, 1.0)), 1.0)
    return (vectors / scales) @ vectors.T, (vectors * scales) @ vectors.T


def _layer_normalized(z: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    z = z - z.mean(axis=-1, keepdims=True)
    square = jnp.square(z).sum(axis=-1, keepdims=True)
    flat = square <= (_FLAT * math.sqrt(z.shape[-1])) ** 2
    # Two `where`s: the gradient of the branch not taken must not be NaN either.
    return jnp.where(flat, 0.0, z * jax.lax.rsqrt(jnp.where(flat, 1.0, square)))


def _product(z: Float[Array, "*batch d"], matrix: Float[Array, "d d"]) -> Float[Array, "*batch d"]:
    # Full float32 also on a GPU: whitening amplifies small differences, TF32's rounding among them.
    return jnp.matmul(z, matrix, precision=jax.lax.Precision.HIGHEST)


def _batch_of(x: Any, shape: tuple[int, ...]) -> Array:
    """`x` as float32, its trailing axes checked against those that the preprocessing was fitted on."""
    x = jnp.asarray(check_array("x", x), jnp.float32)
    if x.shape[max(x.ndim - len(shape), 0) :] != shape:
        expected = ", ".join(["…", *map(str, shape)])
        raise ValueError(f"x: got shape {x.shape}, expected ({expected}) as what it was fitted on")
    return x
