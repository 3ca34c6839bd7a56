"""Finite networks, trained, and what adversarial examples made elsewhere do to them."""

from ntkit.networks.cnns import alexnet, simple_cnn, vgg11
from ntkit.networks.linearized import Linearized, linearize
from ntkit.networks.training import TrainedNetwork, train
from ntkit.networks.transfer import random_noise, transfer, transfer_rows

__all__ = [
    "Linearized",
    "TrainedNetwork",
    "alexnet",
    "linearize",
    "random_noise",
    "simple_cnn",
    "train",
    "transfer",
    "transfer_rows",
    "vgg11",
]
