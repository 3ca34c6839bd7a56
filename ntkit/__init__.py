"""Neural tangent kernels to work with: see the README and `docs/`.

`import ntkit` also makes `import neural_tangents` work on the installed JAX.
"""

from ntkit import _neural_tangents as _neural_tangents
from ntkit import attacks, data, distill, networks, regression, runs
from ntkit.architectures import Architecture, conv, convnet, fc, myrtle
from ntkit.gram import gram
from ntkit.kernels import Kernel, from_stax, nngp, ntk

__all__ = [
    "Architecture",
    "Kernel",
    "attacks",
    "conv",
    "convnet",
    "data",
    "distill",
    "fc",
    "from_stax",
    "gram",
    "myrtle",
    "networks",
    "nngp",
    "ntk",
    "regression",
    "runs",
]
