"""Finite networks, trained, and what adversarial examples made elsewhere do to them."""

from ntkit.networks.cnns import alexnet, resnet18, simple_cnn, standard_convnet, vgg11
from ntkit.networks.dynamics import Dynamics, Rotation, dynamics_result, kernel_distance
from ntkit.networks.linearized import Linearized, linearize
from ntkit.networks.optimizers import adabelief, adam, sgd
from ntkit.networks.ranking import rank_networks
from ntkit.networks.rates import Convergence, convergence
from ntkit.networks.snapshots import Linearization, checkpoints, kernel_dynamics, linearized_from
from ntkit.networks.training import TrainedNetwork, initialize, train
from ntkit.networks.transferring import random_noise, transfer, transfer_result, transfer_rows

__all__ = [
    "Convergence",
    "Dynamics",
    "Linearization",
    "Linearized",
    "Rotation",
    "TrainedNetwork",
    "adabelief",
    "adam",
    "alexnet",
    "checkpoints",
    "convergence",
    "dynamics_result",
    "initialize",
    "kernel_distance",
    "kernel_dynamics",
    "linearize",
    "linearized_from",
    "random_noise",
    "rank_networks",
    "resnet18",
    "sgd",
    "simple_cnn",
    "standard_convnet",
    "train",
    "transfer",
    "transfer_result",
    "transfer_rows",
    "vgg11",
]
