"""Neural tangent kernels to work with: see the README and `docs/`.

`import ntkit` also makes `import neural_tangents` work on the installed JAX.
"""

from ntkit import _neural_tangents as _neural_tangents
from ntkit import attacks, data, distill, features, networks, regression, runs
from ntkit.architectures import Architecture, conv, convnet, fc, myrtle
from ntkit.gram import gram
from ntkit.kernels import Kernel, empirical_ntk, from_stax, nngp, ntk

__all__ = [
    "Architecture",
    "Kernel",
    "attacks",
    "conv",
    "convnet",
    "data",
    "distill",
    "empirical_ntk",
    "fc",
    "features",
    "from_stax",
    "gram",
    "myrtle",
    "networks",
    "nngp",
    "ntk",
    "regression",
    "runs",
]
