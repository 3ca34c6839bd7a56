"""What a kernel is: a pytree that maps two batches of inputs to a Gram matrix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_scalar, wrong
from ntkit._pytrees import told_apart
from ntkit.kernels._inputs import check_inputs, check_pair


class Kernel:
    """A positive semi-definite function of two inputs, evaluated for all pairs of two batches.

    Users shouldn't construct this class: they get kernels from [`ntk`][], [`nngp`][] and [`from_stax`][], and combine
    them with `+` and `*` (with each other, or with a scalar of at least 0).

    Every kernel is a frozen dataclass registered as a JAX pytree: it goes through `jit`, `grad` and `vmap` as an
    argument, and its leaves are its hyper-parameters. A new kernel overrides `gram`, and `gram_diagonal` where the
    diagonal has a cheaper formula.
    """

    # Whether `gram(x, None)` is symmetric to the last bit; where it is not, it is made so.
    exactly_symmetric: ClassVar[bool] = False

    # Makes a NumPy scalar times a kernel a kernel, where NumPy would make an array of objects.
    __array_ufunc__ = None

    @property
    def engine(self) -> str:
        """What computes the kernel, for example `"neural_tangents"`."""
        raise AttributeError(f"{type(self).__name__} names no engine")

    def pair_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Estimate the memory that evaluating one pair takes while many are in flight.

        **Arguments:** `shape`: of one input. `itemsize`: bytes of a number.
        """
        # A kernel that says nothing of itself may hold a few covariances between all pixels of both images.
        pixels = shape[0] * shape[1] if len(shape) == 3 else 1
        return 4 * itemsize * pixels**2

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        """Whether rounding loses the angle between nearly equal inputs of a shape, where a nonlinearity is sharp."""
        return False

    def gram(self, x1: Array, x2: Array | None) -> Array:
        """Evaluate the kernel on checked inputs; `x2=None` means `x1` again."""
        raise TypeError(f"{type(self).__name__} has no gram()")

    def gram_diagonal(self, x: Array) -> Array:
        """Evaluate the kernel of each checked input with itself."""
        # One input at a time: what a network needs for a single pair is bounded, what it needs for n of them is not.
        return jax.lax.map(lambda one: self.gram(one[None], None)[0, 0], x)

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
                "by @jax.tree_util.register_dataclass for example"
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


class _Pair(Kernel):
    """Two kernels, evaluated on the same inputs."""

    first: Kernel
    second: Kernel

    @property
    def engine(self) -> str:
        return " + ".join(dict.fromkeys((self.first.engine, self.second.engine)))

    def pair_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return self.first.pair_bytes(shape, itemsize) + self.second.pair_bytes(shape, itemsize)

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        return self.first.loses_angles(shape) or self.second.loses_angles(shape)


@told_apart
@dataclasses.dataclass(frozen=True)
class Sum(_Pair):
    """The sum of two kernels."""

    first: Kernel
    second: Kernel

    def gram(self, x1: Array, x2: Array | None) -> Array:
        return self.first.gram(x1, x2) + self.second.gram(x1, x2)

    def gram_diagonal(self, x: Array) -> Array:
        return self.first.gram_diagonal(x) + self.second.gram_diagonal(x)


@told_apart
@dataclasses.dataclass(frozen=True)
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

    def pair_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        return self.kernel.pair_bytes(shape, itemsize)

    def loses_angles(self, shape: tuple[int, ...]) -> bool:
        return self.kernel.loses_angles(shape)


@told_apart
@dataclasses.dataclass(frozen=True)
class Scaled(Wrapped):
    """A kernel times a scalar of at least 0."""

    kernel: Kernel
    scale: ArrayLike

    def gram(self, x1: Array, x2: Array | None) -> Array:
        return jnp.multiply(self.scale, self.kernel.gram(x1, x2))

    def gram_diagonal(self, x: Array) -> Array:
        return jnp.multiply(self.scale, self.kernel.gram_diagonal(x))
