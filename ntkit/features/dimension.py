"""The intrinsic dimension of a set of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float

from ntkit._checks import check_finite, check_integers


class CopiesWarning(UserWarning):
    """Some images are copies of others, and count once."""


def intrinsic_dimension(
    images: Float[ArrayLike, "n ..."], neighbours: Sequence[int] = (3, 5, 10, 20)
) -> dict[int, float]:
    """Estimate the dimension of the manifold near which images lie, by maximum likelihood, for numbers of neighbours.

    Levina & Bickel 2004, eq. 9, with the average over images as inverse (MacKay & Ghahramani 2005), as Pope et al. 2021
    (arXiv:2104.08894) do for data sets: m_k⁻¹ is the mean over images x and j < k of log(T_k(x) / T_j(x)), with T_j(x)
    the distance of x from its j-th neighbour.

    **Arguments:** `images`: (n, …), real or distilled. `neighbours`: numbers k, from 2 to n − 1.

    **Returns:** the estimate for each k.

    **Warns:** [`CopiesWarning`][] if some images are copies of others. Each counts once: between copies there is no
    distance to take a logarithm of, and a copy would take the place of a neighbour.

    **Raises:** `ValueError` that names the argument, also if so many images are equal that it is not defined.
    """
    from sklearn.neighbors import NearestNeighbors

    points = check_finite("images", images)
    if points.ndim < 2 or len(points) < 3:
        raise ValueError(f"images: got shape {points.shape}, expected at least 3 images")
    given, points = len(points), np.unique(points.reshape(len(points), -1), axis=0)
    if len(points) < 3:
        raise ValueError(f"images: got copies of {len(points)} images alone, expected at least 3 that differ")
    if len(points) < given:
        warnings.warn(
            f"images: {given - len(points)} of {given} are copies of others; they say nothing of a dimension, and are "
            "left out",
            CopiesWarning,
            stacklevel=2,
        )
    neighbours = check_integers("neighbours", neighbours, 2, len(points) - 1)
    distances = NearestNeighbors(n_neighbors=max(neighbours)).fit(points).kneighbors()[0]
    found = {}
    for k in neighbours:
        near = distances[:, :k]
        # Where images differ by next to nothing their distance is 0.
        ratios = np.log(near[:, -1:] / np.maximum(near[:, :-1], np.finfo(np.float64).tiny))
        if ratios.sum() == 0:
            raise ValueError(f"images: got equal distances, expected some that differ for {k} neighbours")
        found[k] = float(1 / ratios.mean())
    return found
