"""Neural tangent kernels to work with: see the README and `docs/`.

`import ntkit` also makes `import neural_tangents` work on the installed JAX.
"""

from ntkit import _neural_tangents as _neural_tangents
from ntkit import attacks, data, distill, features, gp, networks, poison, regression, runs
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.architectures import Architecture, conv, convnet, fc, myrtle
from ntkit.grams import gram
from ntkit.kernels import Kernel, empirical_ntk, from_stax, nngp, ntk, random_features
from ntkit.saving import load, save

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
    "gp",
    "gram",
    "load",
    "myrtle",
    "networks",
    "nngp",
    "ntk",
    "poison",
    "pytree_dataclass",
    "random_features",
    "regression",
    "runs",
    "save",
    "static_field",
]
