"""How fast a network learns each eigencomponent of its labels, predicted by a kernel and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import check_finite, check_positive, check_targets, wrong
from ntkit.data import check_images
from ntkit.features import predicted_residuals, residuals
from ntkit.kernels import Kernel, empirical_ntk
from ntkit.kernels.base import check_kernel
from ntkit.networks.optimizers import sgd
from ntkit.networks.snapshots import checkpoints, steps_of
from ntkit.networks.training import Module, initialize


@dataclasses.dataclass(frozen=True, eq=False)
class Convergence:
    """What gradient descent leaves of each eigencomponent of the labels; [`convergence`][] makes it.

    **Fields:** `steps`: of descent, in rising order. `eigenvalues`: of the kernel (n,), the largest first. `initial`:
    ‖v_iᵀ y‖ (n,), before the first step. `predicted`, `measured`: what is left of them at each step, (steps, n).
    """

    steps: tuple[int, ...]
    eigenvalues: Float[np.ndarray, " n"]
    initial: Float[np.ndarray, " n"]
    predicted: Float[np.ndarray, "steps n"]
    measured: Float[np.ndarray, "steps n"]

    @property
    def shares(self) -> Float[np.ndarray, " n"]:
        """Share of the labels' squares along each eigenvector; all of them sum to 1."""
        return self.initial**2 / np.sum(self.initial**2)

    def left(self, residuals: Float[np.ndarray, "steps n"]) -> Float[np.ndarray, " steps"]:
        """Give ‖y − f‖ / ‖y‖ at each step, of what is left of the components: `predicted` or `measured`."""
        return np.linalg.norm(residuals, axis=1) / np.linalg.norm(self.initial)


def convergence(
    module: Module,
    images: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n outputs"],
    *,
    key: Array,
    at: Sequence[int] = (0, 1, 3, 10, 30, 100, 300, 1000),
    kernel: Kernel | None = None,
    learning_rate: float | None = None,
) -> Convergence:
    """Train a network by gradient descent, and compare what is left of its labels with what a kernel predicts.

    Arora et al. 2019 (arXiv:1901.08584, theorem 4.1 and fig. 1): along the eigenvector v_i of the kernel's Gram matrix
    ‖v_iᵀ (y − f)‖ falls as (1 − η λ_i / n)^t, so that labels which lie along the top of the spectrum are learned fast,
    and random ones slowly. The network is wide enough for a kernel where the two agree.

    The loss is ½ · mean over images of ‖f(x) − y‖², all images are in each step, and the network's output at its
    initialization is subtracted, so that it starts from 0.

    **Arguments:**

    - `module`: a flax module.
    - `images`, `targets`: what it is trained on.
    - `key`: of the initialization.
    - `at`: numbers of steps; the largest is where training ends.
    - `kernel`: whose prediction it is. Default: the network's own tangent kernel at its initialization, the mean over
      outputs of Θ[c, c].
    - `learning_rate`: η. Default: n over the largest eigenvalue, which learns the first component in one step.

    **Returns:** a [`Convergence`][].

    **Raises:** `ValueError` that names the argument, also for a learning rate with which the prediction diverges;
    `FloatingPointError` if the training diverged.
    """
    images = check_images("images", images)
    check_finite("targets", check_targets("targets", targets, np.shape(images)[0]), "finite values")
    steps_of("at", at, 1)
    if kernel is not None:
        check_kernel("kernel", kernel)
    network = initialize(module, images, key=key)
    shown = jnp.asarray(images)
    kernel = empirical_ntk(module.apply, network.variables) if kernel is None else kernel
    values, vectors = np.linalg.eigh(np.asarray(kernel(shown), np.float64))
    values, vectors = values[::-1], vectors[:, ::-1]
    highest = 2 * len(values) / values[0]
    rate = highest / 2 if learning_rate is None else learning_rate
    if not check_positive("learning_rate", rate) < highest:
        raise wrong(
            "learning_rate", rate, f"a number above 0 and below {highest:g}, 2 n over the kernel's largest eigenvalue"
        )
    networks = checkpoints(
        module,
        images,
        targets,
        at=at,
        key=key,
        centred=True,
        loss="mse",
        optimizer=sgd(float(rate)),
        batch_size=None,
    )
    y, steps = np.asarray(targets, np.float64), tuple(networks)
    return Convergence(
        steps,
        values,
        residuals(vectors, y),
        predicted_residuals(values, vectors, y, np.asarray(steps), rate / len(values)),
        np.array([residuals(vectors, y - np.asarray(one(shown), np.float64)) for one in networks.values()]),
    )
