"""Label Solve: the best targets for given support images, in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from ntkit import regression
from ntkit._checks import check_number, wrong
from ntkit.data import one_hot
from ntkit.distill.distilled import Distilled
from ntkit.distill.support import check_data_set, in_jax_precision
from ntkit.grams import gram as gram_in_blocks
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.runs.meshes import check_mesh


def label_solve(
    kernel: Kernel,
    support_images: Float[ArrayLike, "m ..."],
    images: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    ridge: float = 1e-6,
    mesh: jax.sharding.Mesh | None = None,
) -> Distilled:
    """Find the support targets that minimize KIP's squared loss for fixed support images.

    y_s = argmin ‖K_ts (K_ss + λI)⁻¹ y_s − y_t‖², section 3.2 of Nguyen, Chen, Lee 2021 (arXiv:2011.00050), here through
    the dual coefficients w = (K_ss + λI)⁻¹ y_s: a least-squares problem K_ts w ≈ y_t, solved in float64 by SciPy, and
    a product, so that the inverse is never formed.

    **Arguments:**

    - `kernel`: the kernel.
    - `support_images`: the m fixed support images, as fed to the kernel.
    - `images`: the n target images.
    - `labels`: their classes, integers from 0.
    - `ridge`: λ relative to tr(K_ss)/m, with which the set is to be used.
    - `mesh`: divide the kernel between target and support images among all devices of this mesh; all processes must
      make the same call, and each solves the rest.

    **Returns:** the support images with their targets (m, num_classes), and the loss and accuracy on the target set.

    **Raises:** `ValueError` that names the argument, what came and what was expected.
    """
    from scipy.linalg import lstsq

    check_kernel("kernel", kernel)
    images, labels, num_classes = check_data_set(images, labels)
    support = jnp.asarray(in_jax_precision("support_images", support_images), images.dtype)
    if support.shape[1:] != images.shape[1:]:
        raise ValueError(f"support_images: got images of shape {support.shape[1:]}, expected {images.shape[1:]}")
    ridge = check_number("ridge", ridge, least=0)
    if mesh is not None:
        check_mesh(mesh)
    targets = np.asarray(one_hot(labels, num_classes), np.float64)
    cross = np.asarray(gram_in_blocks(kernel, images, support, mesh=mesh), np.float64)
    gram = np.asarray(kernel(support), np.float64)
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise FloatingPointError(
            f"kernel: not finite in {support.dtype} on these images; make its W_std and b_std smaller"
        )
    # Directions that the target set does not determine to the kernel's own precision are left at zero.
    cutoff = max(cross.shape) * float(jnp.finfo(support.dtype).eps)
    weights, _, _, _ = lstsq(cross, targets, cond=cutoff, check_finite=True)
    solved = gram @ weights + ridge * (np.trace(gram) / len(gram)) * weights
    if not np.abs(solved).max() <= jnp.finfo(support.dtype).max:
        raise wrong("ridge", ridge, f"less: {support.dtype} cannot hold the labels that make up for it")
    distilled = Distilled(np.asarray(support), solved.astype(support.dtype), kernel=kernel)
    # What the float32 set itself achieves, not the float64 weights behind it.
    model = regression.fit(kernel, support, jnp.asarray(distilled.labels), ridge)
    predictions = cross @ np.asarray(model.weights, np.float64)
    history = {
        "step": np.array([0]),
        "loss": np.array([0.5 * np.mean(np.sum((predictions - targets) ** 2, axis=1))]),
        "accuracy": np.array([np.mean(predictions.argmax(axis=1) == labels)]),
        "ridge": np.array([float(model.ridge)]),
    }
    return Distilled(distilled.images, distilled.labels, history, kernel=kernel)
