"""Kernels of finitely many features, K(x, x') = φ(x) · φ(x'): what models of them cost grows with n, not with n²."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from ntkit._checks import check_callable, check_outputs
from ntkit._pytrees import Partly, pytree_dataclass, static, static_field, traceable
from ntkit.kernels import memory
from ntkit.kernels.base import Kernel
from ntkit.kernels.pairs import each
from ntkit.kernels.tiled import matmul


class FeatureKernel(Kernel, abc.ABC):
    """A kernel that is an inner product of features. A new one writes `gram_features`, and nothing else."""

    @property
    def has_features(self) -> bool:
        """Always true."""
        return True

    @abc.abstractmethod
    def gram_features(self, x: Array) -> Array:
        """Give the features (n, m) of checked inputs, in bounded memory beside the result."""

    def gram(self, x1: Array, x2: Array | None) -> Array:
        first = self.gram_features(x1)
        return matmul(first, (first if x2 is None else self.gram_features(x2)).T)

    def gram_diagonal(self, x: Array) -> Array:
        return (self.gram_features(x) ** 2).sum(axis=1)

    def gram_matmul(self, x1: Array, x2: Array, v: Array) -> Array:
        return matmul(self.gram_features(x1), matmul(self.gram_features(x2).T, v))


def count_features(kernel: Kernel, x: Array) -> int:
    """Give the number of features that a kernel has for inputs like these, without computing any."""
    return int(jax.eval_shape(kernel.gram_features, x[:1]).shape[1])


def kernel_of_features(function: Callable[[Any, Array], Array], params: Any = ()) -> Kernel:
    """Give the kernel K(x, x') = φ(x) · φ(x') / m of given features φ, such as the last hidden values of a network.

    That of a network's last hidden values is its conjugate kernel.

    **Arguments:** `function`: `function(params, x) -> (n, m)`, for example that of
    [`ntkit.networks.standard_convnet`][] with `method="features"`. `params`: a pytree of arrays, which it depends on.

    **Raises:** `ValueError` that names the argument.
    """
    check_callable("function", function, "a function of params and inputs")
    return GivenFeatures(traceable(params), static(function))


@pytree_dataclass(eq=False)
class GivenFeatures(FeatureKernel):
    """The kernel of given features; [`kernel_of_features`][ntkit.kernels.kernel_of_features] makes it."""

    params: Any
    function: Callable[[Any, Array], Array] = static_field()

    @property
    def engine(self) -> str:
        """Always `"features"`."""
        return "features"

    def gram_features(self, x: Array) -> Array:
        return each(self._features, x, memory.at_once(4 * self._alive(x), memory.BLOCK))

    def _features(self, x: Array) -> Array:
        found = self.function(self.params.whole() if isinstance(self.params, Partly) else self.params, x)
        return found / check_outputs("function", found, len(x)) ** 0.5

    def _alive(self, x: Array) -> int:
        """Give the bytes of the largest value on the way that one more input makes larger, by so much."""

        def sizes(n: int) -> list[int]:
            traced = jax.make_jaxpr(self._features)(jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype))
            return [math.prod(value.aval.shape) for equation in traced.jaxpr.eqns for value in equation.outvars]

        # What is traced otherwise for two inputs than for one says nothing.
        return x.dtype.itemsize * max((two - one for one, two in zip(sizes(1), sizes(2), strict=False)), default=1)
