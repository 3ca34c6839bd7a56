"""What a kernel is: a pytree that maps two batches of inputs to a Gram matrix."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_scalar, wrong
from ntkit._pytrees import pytree_dataclass
from ntkit.kernels.inputs import check_columns, check_inputs, check_pair
from ntkit.kernels.tiled import product


class Kernel:
    """A positive semi-definite function of two inputs, evaluated for all pairs of two batches.

    Users shouldn't construct this class: they get kernels from [`ntk`][], [`nngp`][] and [`from_stax`][], and combine
    them with `+` and `*` (with each other, or with a scalar of at least 0).

    Every kernel is a frozen dataclass registered as a JAX pytree: it goes through `jit`, `grad` and `vmap` as an
    argument, and its leaves are its hyper-parameters. A new kernel overrides `gram`; `gram_diagonal` where the diagonal
    has a cheaper formula; and `gram_matmul` where a product with K is cheaper than K. Each is bounded in what it makes
    on the way, whatever the number of inputs: whoever asks bounds the result alone.
    """

    # Whether `gram(x, None)` is symmetric to the last bit; where it is not, it is made so.
    exactly_symmetric: ClassVar[bool] = False

    # Makes a NumPy scalar times a kernel a kernel, where NumPy would make an array of objects.
    __array_ufunc__ = None

    @property
    def engine(self) -> str:
        """What computes the kernel, for example `"neural_tangents"`."""
        raise AttributeError(f"{type(self).__name__} names no engine")

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        """Whether rounding loses the angle between nearly equal inputs of a shape, where a nonlinearity is sharp."""
        return False

    @property
    def has_features(self) -> bool:
        """Whether it is an inner product of finitely many features, which `features` gives."""
        return False

    def gram_features(self, x: Array) -> Array:
        """Give the features (n, m) of checked inputs, where there are any."""
        raise ValueError(f"kernel: got a {type(self).__name__}, expected one of finitely many features")

    def gram(self, x1: Array, x2: Array | None) -> Array:
        """Evaluate the kernel on checked inputs; `x2=None` means `x1` again."""
        raise TypeError(f"{type(self).__name__} has no gram()")

    def gram_diagonal(self, x: Array) -> Array:
        """Evaluate the kernel of each checked input with itself."""
        # One input at a time: what a network needs for a single pair is bounded, what it needs for n of them is not.
        return jax.lax.map(lambda one: self.gram(one[None], None)[0, 0], x)

    def gram_matmul(self, x1: Array, x2: Array, v: Array) -> Array:
        """Give K(x1, x2) v for checked inputs, in bounded memory: by default tile by tile."""
        return product(self, x1, x2, v)

    def __call__(
        self, x1: Float[ArrayLike, "n1 ..."], x2: Float[ArrayLike, "n2 ..."] | None = None
    ) -> Float[Array, "n1 n2"]:
        """Give the Gram matrix of two batches.

        **Arguments:** `x1`, `x2`: images (n, height, width, channels) or vectors (n, d), of one shape per input.
        `x2=None`: `x1` with itself, which is symmetric and cheaper.

        **Returns:** an array (n1, n2) of the inputs' floating dtype; float32 for inputs of half precision.

        **Raises:** `ValueError` that names the argument whose shape or dtype does not fit.
        """
        return _gram(check_kernel("kernel", self), *check_pair(x1, x2))

    def diagonal(self, x: Float[ArrayLike, "n ..."]) -> Float[Array, " n"]:
        """Give the kernel of each input with itself: the diagonal of `self(x)`, without the rest of it."""
        return _diagonal(check_kernel("kernel", self), check_inputs("x", x))

    def features(self, x: Float[ArrayLike, "n ..."]) -> Float[Array, "n m"]:
        """Give the features of each input, of which the kernel is the inner product.

        **Raises:** `ValueError` that names the argument, or a kernel that has none, as that of an infinite network.
        """
        return _features(check_kernel("kernel", self), check_inputs("x", x))

    def matmul(
        self, x1: Float[ArrayLike, "n1 ..."], x2: Float[ArrayLike, "n2 ..."], v: Float[ArrayLike, "n2 columns"]
    ) -> Float[Array, "n1 columns"]:
        """Give K(x1, x2) v, of which no more than a tile of K is ever in memory. Differentiable.

        **Arguments:** `x1`, `x2`: as of a call. `v`: (n2, columns).

        **Raises:** `ValueError` that names the argument.
        """
        second = check_inputs("x2", x2)
        first, _ = check_pair(x1, second)
        v = check_columns(v, (len(second), None))
        return check_kernel("kernel", self).gram_matmul(first, second, v)

    def multiplies_by_itself(self, n1: int, n2: int, columns: int) -> bool:
        """Whether products of these sizes are cheaper than K: where a kernel has its own, unless it says no."""
        return type(self).gram_matmul is not Kernel.gram_matmul

    def __add__(self, other: Kernel) -> Kernel:
        if not isinstance(other, Kernel):
            return NotImplemented
        return Sum(self, other)

    def __mul__(self, other: Kernel | ArrayLike) -> Kernel:
        if isinstance(other, Kernel):
            return Product(self, other)
        return Scaled(self, check_scalar("scale", other))

    def __rmul__(self, other: ArrayLike) -> Kernel:
        return Scaled(self, check_scalar("scale", other))


def check_kernel(name: str, value: object) -> Kernel:
    """A kernel that JAX can take apart, with all that it is made of."""
    if not isinstance(value, Kernel):
        raise wrong(name, value, "an ntkit.Kernel such as ntkit.ntk(ntkit.fc(1))")
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, Kernel):
            raise ValueError(
                f"{name}: got a {type(leaf).__name__}, which is no pytree, expected its class to be registered, "
                "by @ntkit.pytree_dataclass for example"
            )
    return value


# The inputs decide the precision, not hyper-parameters: these may be float64 scalars of NumPy where x64 is on.
@jax.jit
def _gram(kernel: Kernel, x1: Array, x2: Array | None) -> Array:
    if x2 is not None:
        return kernel.gram(x1, x2).astype(jnp.promote_types(x1.dtype, x2.dtype))
    gram = kernel.gram(x1, None).astype(x1.dtype)
    # A matrix product x xᵀ is symmetric up to rounding only, which large inputs make visible.
    return gram if kernel.exactly_symmetric else (gram + gram.T) / 2


@jax.jit
def _diagonal(kernel: Kernel, x: Array) -> Array:
    return kernel.gram_diagonal(x).astype(x.dtype)


@jax.jit
def _features(kernel: Kernel, x: Array) -> Array:
    return kernel.gram_features(x).astype(x.dtype)


class _Pair(Kernel):
    """Two kernels, evaluated on the same inputs."""

    first: Kernel
    second: Kernel

    @property
    def engine(self) -> str:
        return " + ".join(dict.fromkeys((self.first.engine, self.second.engine)))

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        return self.first.loses_angles(shape) or self.second.loses_angles(shape)


@pytree_dataclass
class Sum(_Pair):
    """The sum of two kernels."""

    first: Kernel
    second: Kernel

    @property
    def has_features(self) -> bool:
        return self.first.has_features and self.second.has_features

    def gram_features(self, x: Array) -> Array:
        return jnp.concatenate([self.first.gram_features(x), self.second.gram_features(x)], axis=1)

    def gram(self, x1: Array, x2: Array | None) -> Array:
        return self.first.gram(x1, x2) + self.second.gram(x1, x2)

    def gram_diagonal(self, x: Array) -> Array:
        return self.first.gram_diagonal(x) + self.second.gram_diagonal(x)


@pytree_dataclass
class Product(_Pair):
    """The pointwise product of two kernels (positive semi-definite by Schur's theorem)."""

    first: Kernel
    second: Kernel

    def gram(self, x1: Array, x2: Array | None) -> Array:
        return self.first.gram(x1, x2) * self.second.gram(x1, x2)

    def gram_diagonal(self, x: Array) -> Array:
        return self.first.gram_diagonal(x) * self.second.gram_diagonal(x)


class Wrapped(Kernel):
    """Another kernel, changed: of its engine, and of its cost."""

    kernel: Kernel

    @property
    def engine(self) -> str:
        return self.kernel.engine

    @property
    def has_features(self) -> bool:
        return self.kernel.has_features

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        return self.kernel.loses_angles(shape)

    def multiplies_by_itself(self, n1: int, n2: int, columns: int) -> bool:
        return self.kernel.multiplies_by_itself(n1, n2, columns)


@pytree_dataclass
class Scaled(Wrapped):
    """A kernel times a scalar of at least 0."""

    kernel: Kernel
    scale: ArrayLike

    def gram_features(self, x: Array) -> Array:
        return jnp.multiply(jnp.sqrt(self.scale), self.kernel.gram_features(x))

    def gram(self, x1: Array, x2: Array | None) -> Array:
        return jnp.multiply(self.scale, self.kernel.gram(x1, x2))

    def gram_diagonal(self, x: Array) -> Array:
        return jnp.multiply(self.scale, self.kernel.gram_diagonal(x))

    def gram_matmul(self, x1: Array, x2: Array, v: Array) -> Array:
        return jnp.multiply(self.scale, self.kernel.gram_matmul(x1, x2, v)).astype(v.dtype)
