"""Training sets on which networks learn nothing of use."""

from ntkit.poison.ntga import ntga

__all__ = ["ntga"]
