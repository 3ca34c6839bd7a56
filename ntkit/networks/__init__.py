"""Finite networks, trained."""

from ntkit.networks.training import TrainedNetwork, train

__all__ = ["TrainedNetwork", "train"]
