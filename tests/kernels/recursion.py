"""The kernels of infinitely wide ReLU networks in NumPy, float64, as plainly as the formulas are written.

Covariances are kept between all pixels of all images, (n, n, height, width, height, width): wasteful, and with no
case that could be got wrong on its own.
"""

import numpy as np

from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, Flatten, GlobalAveragePool


def relu_kernels(architecture: Architecture, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the NNGP kernel and the NTK (NTK parameterization) of images or vectors x with themselves."""
    x = np.asarray(x, np.float64)
    if x.ndim == 2:
        x = x[:, None, None, :]
    nngp = np.einsum("nijc,mklc->nmijkl", x, x) / x.shape[-1]
    ntk = np.zeros_like(nngp)
    for layer in architecture.layers:
        match layer:
            case Dense():
                nngp, ntk = affine(layer, nngp, ntk, lambda a: a)
            case Conv():
                nngp, ntk = affine(layer, nngp, ntk, lambda a, layer=layer: convolve(a, layer))
            case Activation(name="relu"):
                nngp, slope = relu(nngp)
                ntk = ntk * slope
            case AveragePool():
                nngp, ntk = pool(nngp, layer.window), pool(ntk, layer.window)
            case GlobalAveragePool():
                nngp, ntk = (a.mean((2, 3, 4, 5), keepdims=True) for a in (nngp, ntk))
            case Flatten():
                nngp, ntk = (np.einsum("nmijij->nm", a)[:, :, None, None, None, None] for a in (nngp, ntk))
                pixels = x.shape[1] * x.shape[2] if layer is architecture.layers[0] else count(architecture, x.shape)
                nngp, ntk = nngp / pixels, ntk / pixels
    return nngp[:, :, 0, 0, 0, 0], ntk[:, :, 0, 0, 0, 0]


def count(architecture: Architecture, shape: tuple[int, ...]) -> int:
    """Count the pixels that arrive at Flatten, by the same shapes as the covariances."""
    a = np.zeros((1, 1, *shape[1:3], *shape[1:3]))
    for layer in architecture.layers:
        if isinstance(layer, Conv):
            a = convolve(a, layer)
        elif isinstance(layer, AveragePool):
            a = pool(a, layer.window)
    return a.shape[2] * a.shape[3]


def affine(layer, nngp, ntk, mean):
    bias = 0.0 if layer.b_std is None else float(layer.b_std) ** 2
    weights = float(layer.W_std) ** 2
    nngp = weights * mean(nngp) + bias
    return nngp, nngp + weights * mean(ntk)


def convolve(a, layer):
    """The mean over the window's positions, which move together in both images."""
    (rows, columns), (down, right) = layer.window, layer.strides
    # What comes before of a window that must be filled up; what comes after takes the rest.
    mode = {"SAME": "constant", "CIRCULAR": "wrap", "VALID": None}[layer.padding]
    if mode:
        height, width = a.shape[2:4]
        total = [
            max((-(-size // stride) - 1) * stride + window - size, 0)
            for size, stride, window in ((height, down, rows), (width, right, columns))
        ]
        pads = [(t // 2, t - t // 2) for t in total]
        a = np.pad(a, [(0, 0), (0, 0), *pads, *pads], mode=mode)
    height, width = a.shape[2] - rows + 1, a.shape[3] - columns + 1
    shifts = [
        a[:, :, i : i + height, j : j + width, i : i + height, j : j + width]
        for i in range(rows)
        for j in range(columns)
    ]
    return np.mean(shifts, axis=0)[:, :, ::down, ::right, ::down, ::right]


def relu(nngp):
    """E[σσ] and E[σ'σ'] (Cho & Saul 2009)."""
    variance = np.einsum("nnijij->nij", nngp)
    scale = np.sqrt(variance[:, None, :, :, None, None] * variance[None, :, None, None, :, :])
    cosine = np.clip(nngp / np.where(scale > 0, scale, 1.0), -1, 1)
    # An image's pixel with itself: 1 up to rounding, whose square root arccos would give.
    n, _, height, width, _, _ = nngp.shape
    i, j, k = np.meshgrid(np.arange(n), np.arange(height), np.arange(width), indexing="ij")
    cosine[i, i, j, k, j, k] = np.where(variance > 0, 1.0, 0.0)
    theta = np.arccos(cosine)
    slope = (np.pi - theta) / (2 * np.pi)
    return scale * (np.sin(theta) / (2 * np.pi) + cosine * slope), slope


def pool(a, window):
    (rows, columns), (n, m, height, width, _, _) = window, a.shape
    height, width = height // rows, width // columns
    a = a[:, :, : height * rows, : width * columns, : height * rows, : width * columns]
    return a.reshape(n, m, height, rows, width, columns, height, rows, width, columns).mean((3, 5, 7, 9))
