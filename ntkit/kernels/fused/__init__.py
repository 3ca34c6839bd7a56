"""ntkit's own engine for the closed-form kernels of fully-connected and convolutional networks.

`stages` says what has to be computed, `covariances` computes it for a block of pairs, by the `moments` of the
activations and the `first_stage`; `near` computes again what rounding spoiled; `kernel` puts them together.
"""

from ntkit.kernels.fused.kernel import FusedKernel, supports

__all__ = ["FusedKernel", "supports"]
