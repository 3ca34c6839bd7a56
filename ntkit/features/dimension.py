"""The intrinsic dimension of a set of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float


def intrinsic_dimension(
    images: Float[ArrayLike, "n ..."], neighbours: Sequence[int] = (3, 5, 10, 20)
) -> dict[int, float]:
    """Estimate the dimension of the manifold near which images lie, by maximum likelihood, for numbers of neighbours.

    Levina & Bickel 2004, eq. 9, with the average over images as inverse (MacKay & Ghahramani 2005), as Pope et al. 2021
    (arXiv:2104.08894) do for data sets: m_k⁻¹ is the mean over images x and j < k of log(T_k(x) / T_j(x)), with T_j(x)
    the distance of x from its j-th neighbour.

    **Arguments:** `images`: (n, …), real or distilled. `neighbours`: numbers k, from 2 to n − 1.

    **Returns:** the estimate for each k.

    **Raises:** `ValueError` that names the argument, also if so many images are equal that it is not defined.
    """
    from sklearn.neighbors import NearestNeighbors

    points = np.asarray(images, np.float64)
    points = points.reshape(len(points), -1) if points.ndim > 1 else points
    if points.ndim != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f"images: got shape {np.shape(images)}, expected at least 3 images of finite numbers")
    for k in neighbours:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 2 <= k < len(points):
            raise ValueError(
                f"neighbours: got {k!r}, expected integers from 2 to {len(points) - 1}, less than the images"
            )
    if not neighbours:
        raise ValueError("neighbours: got none, expected at least one number")
    distances = NearestNeighbors(n_neighbors=max(neighbours)).fit(points).kneighbors()[0]
    found = {}
    for k in neighbours:
        near = distances[:, :k]
        # Copies of an image say nothing of a dimension.
        near = near[near[:, 0] > 0]
        ratios = np.log(near[:, -1:] / near[:, :-1])
        if len(near) == 0 or ratios.sum() == 0:
            raise ValueError(f"images: got copies of each other, expected distances that differ for {k} neighbours")
        found[int(k)] = float(1 / ratios.mean())
    return found
