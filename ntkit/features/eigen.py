"""A kernel's features: the models along the eigenvectors of its Gram matrix, whose sum is the whole predictor."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_integer
from ntkit._pytrees import pytree_dataclass
from ntkit.kernels import Kernel
from ntkit.kernels.inputs import check_inputs
from ntkit.regression import Predictor, check_training_set
from ntkit.solvers import Operator, operator_of


class RankWarning(UserWarning):
    """The Gram matrix is singular in this precision, and its last features are not there."""


@pytree_dataclass(eq=False)
class EigenFeatures:
    """The eigendecomposition of a Gram matrix, K = Σ λ_i v_i v_iᵀ, as models; [`eigenfeatures`][] makes it.

    Feature i is the model x ↦ K(x, X) λ_i⁻¹ v_i v_iᵀ y. `features[i]` is one, `features[i:j]` the sum of some, and
    `features[[0, 3]]` too: each a [`ntkit.regression.Predictor`][]. Those of one `EigenFeatures` have equal shapes, so
    that what is compiled for one of them, an attack for example, serves for all.

    **Fields:**

    - `kernel`, `support`: K and the n inputs X.
    - `eigenvalues`: λ (k,), the largest first.
    - `vectors`: (n, k), orthonormal columns. Their signs are such that the largest entry is positive.
    - `coefficients`: vᵀ y, (k, outputs).
    """

    kernel: Kernel
    support: Float[Array, "n ..."]
    eigenvalues: Float[Array, " k"]
    vectors: Float[Array, "n k"]
    coefficients: Float[Array, "k outputs"]

    def __len__(self) -> int:
        """Give the number of features."""
        return len(self.eigenvalues)

    def __getitem__(self, which: int | slice | ArrayLike) -> Predictor:
        """Give the sum of one feature or several as a model.

        **Raises:** `IndexError` if there are not as many.
        """
        # NumPy's rules, and its errors.
        chosen = np.atleast_1d(np.arange(len(self))[which if isinstance(which, slice) else np.asarray(which)])
        weights = _weights(self.vectors[:, chosen], self.eigenvalues[chosen], self.coefficients[chosen])
        return Predictor(self.kernel, self.support, weights, jnp.zeros((), weights.dtype))

    def eigenfunctions(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, "m k"]:
        """Give K(x, X) v_i λ_i⁻¹ for each feature: what multiplies the row vᵢᵀ y of outputs, and v_i itself on X.

        Features of two kernels can be compared by these, on images that neither was decomposed on.
        """
        x = check_inputs("x", x)
        if x.shape[1:] != self.support.shape[1:]:
            raise ValueError(f"x: got inputs of shape {x.shape[1:]}, expected {self.support.shape[1:]} as in support")
        return self.kernel.matmul(x, self.support, self.vectors / self.eigenvalues)

    def __iter__(self) -> Iterator[Predictor]:
        return (self[i] for i in range(len(self)))


def eigenfeatures(
    kernel: Kernel,
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n outputs"],
    *,
    top: int | None = None,
    gram: Float[Array | np.ndarray, "n n"] | None = None,
    mesh: Mesh | None = None,
    block_size: int | None = None,
) -> EigenFeatures:
    """Decompose kernel regression into features, by the eigenvectors of its Gram matrix.

    Tsilivis & Kempe 2022 (arXiv:2210.05577), section 4: the predictor K(·, X) K⁻¹ y of the infinitely wide network is
    the sum of its features, and gradient descent learns those of large eigenvalues first.

    **Arguments:**

    - `kernel`, `x`, `y`: as in [`ntkit.regression.fit`][].
    - `top`: how many features, of the largest eigenvalues. `None`: all, by a full decomposition of K in float64 on the
      host. Fewer are found by SciPy's `eigsh` (Lanczos with restarts), which only multiplies with K, so that it need
      not fit in memory; in the precision of K, in which eigenvectors of near eigenvalues far down the spectrum mix.
    - `gram`: K, if you have it: an array, or a memory map, as `ntkit.gram(…, store=…)` gives.
    - `mesh`, `block_size`: for `top`, of products with a K that is computed again in each, or is read from a disk; as
      in [`ntkit.regression.fit`][].

    **Returns:** [`EigenFeatures`][].

    **Warns:** [`RankWarning`][] if eigenvalues are so small beside the largest, up to 8 times the rounding of K's
    entries, that their eigenvectors are noise. These features are left out.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the Gram matrix or the targets are not
    finite.
    """
    x, y = check_training_set(x, y)
    n = len(x)
    top = None if top is None else check_integer("top", top, 1, n)
    operator = operator_of(kernel, x, gram, mesh, block_size)
    # Lanczos needs some room; without it the full decomposition is the faster one, too.
    if top is None or 2 * top >= n:
        eigenvalues, vectors = _decomposed(np.array(operator.dense(), np.float64))
    else:
        eigenvalues, vectors = _lanczos(operator, top)
    if not (np.isfinite(eigenvalues).all() and np.isfinite(np.asarray(y)).all()):
        raise FloatingPointError(
            "eigenfeatures: not finite; look for NaN or infinite values in the inputs, the targets and the kernel"
        )
    eigenvalues, vectors = eigenvalues[:top], _with_signs(vectors[:, :top])
    # Rounding of K's entries, and of the decomposition.
    noise = max(8 * jnp.finfo(operator.dtype).eps, n * np.finfo(np.float64).eps) * np.abs(eigenvalues).max()
    rank = int(np.sum(eigenvalues > noise))
    if rank < len(eigenvalues):
        warnings.warn(
            f"kernel: of {len(eigenvalues)} eigenvalues {len(eigenvalues) - rank} are zero but for rounding, and their "
            "features are left out (near-duplicates make them; x64 would tell more of them apart)",
            RankWarning,
            stacklevel=2,
        )
    eigenvalues, vectors = eigenvalues[:rank], vectors[:, :rank]
    coefficients = vectors.T @ np.asarray(y, np.float64)
    return EigenFeatures(
        kernel, x, *(jnp.asarray(array, operator.dtype) for array in (eigenvalues, vectors, coefficients))
    )


def _decomposed(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give eigenvalues, the largest first, and eigenvectors.

    In float64: a decomposition in float32 mixes eigenvectors whose eigenvalues are nearer than its rounding of the
    largest one, which is most of them, though a matrix of float32 tells them apart.
    """
    from scipy.linalg import eigh

    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan), gram
    eigenvalues, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    return eigenvalues[::-1], vectors[:, ::-1]


def _lanczos(operator: Operator, top: int) -> tuple[np.ndarray, np.ndarray]:
    import scipy.sparse.linalg

    def product(v: np.ndarray) -> np.ndarray:
        return np.asarray(operator.matvec(jnp.asarray(v.reshape(operator.size, -1), operator.dtype)))

    matrix = scipy.sparse.linalg.LinearOperator(
        (operator.size, operator.size), matvec=product, matmat=product, dtype=operator.dtype
    )
    # A start of our own, so that the same arguments give the same bits.
    start = np.random.default_rng(0).standard_normal(operator.size).astype(operator.dtype)
    eigenvalues, vectors = scipy.sparse.linalg.eigsh(matrix, top, which="LA", v0=start)
    return eigenvalues[::-1], vectors[:, ::-1]


def _with_signs(vectors: np.ndarray) -> np.ndarray:
    largest = np.take_along_axis(vectors, np.argmax(np.abs(vectors), axis=0)[None], axis=0)
    return vectors * np.where(largest < 0, -1, 1)


@jax.jit
def _weights(vectors: Array, eigenvalues: Array, coefficients: Array) -> Array:
    return functools.partial(jnp.matmul, precision="highest")(vectors, coefficients / eigenvalues[:, None])
