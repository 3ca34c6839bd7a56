"""Finite networks, trained, and what adversarial examples made elsewhere do to them."""

from ntkit.networks.checkpoints import Linearization, checkpoints, kernel_dynamics, linearized_from
from ntkit.networks.cnns import alexnet, simple_cnn, vgg11
from ntkit.networks.convergence import Convergence, convergence
from ntkit.networks.dynamics import Dynamics, Rotation, kernel_distance
from ntkit.networks.linearized import Linearized, linearize
from ntkit.networks.training import TrainedNetwork, initialize, train
from ntkit.networks.transfer import random_noise, transfer, transfer_rows

__all__ = [
    "Convergence",
    "Dynamics",
    "Linearization",
    "Linearized",
    "Rotation",
    "TrainedNetwork",
    "alexnet",
    "checkpoints",
    "convergence",
    "initialize",
    "kernel_distance",
    "kernel_dynamics",
    "linearize",
    "linearized_from",
    "random_noise",
    "simple_cnn",
    "train",
    "transfer",
    "transfer_rows",
    "vgg11",
]
