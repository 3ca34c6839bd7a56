"""Finite networks, trained."""

from ntkit.networks.cnns import alexnet, simple_cnn, vgg11
from ntkit.networks.linearized import Linearized, linearize
from ntkit.networks.training import TrainedNetwork, train

__all__ = ["Linearized", "TrainedNetwork", "alexnet", "linearize", "simple_cnn", "train", "vgg11"]
