"""The flax module behind the networks of `cnns`."""

from __future__ import annotations

import flax.linen as nn
import jax


class CNN(nn.Module):
    """Stages of convolutions (channels, window), each with a ReLU; 2×2 maxima after the first `pools` stages."""

    stages: tuple[tuple[tuple[int, int], ...], ...]
    pools: int
    hidden: int | None
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images (n, height, width, channels) to outputs (n, num_outputs)."""
        if x.ndim != 4:
            raise ValueError(f"x: got inputs of shape {x.shape[1:]}, expected images (height, width, channels)")
        he = nn.initializers.he_normal()
        for i, stage in enumerate(self.stages):
            for features, window in stage:
                x = nn.relu(nn.Conv(features, (window, window), kernel_init=he)(x))
            if i < self.pools:
                x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        x = x.reshape(len(x), -1)
        if self.hidden is not None:
            x = nn.relu(nn.Dense(self.hidden, kernel_init=he)(x))
        return nn.Dense(self.num_outputs)(x)
