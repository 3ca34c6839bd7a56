"""The flax modules behind the networks of `cnns`."""

from __future__ import annotations

import flax.linen as nn
import jax


class CNN(nn.Module):
    """Stages of convolutions (channels, window), each with a ReLU; 2×2 maxima after the first `pools` stages.

    As of all networks here, `module.apply(variables, x, method="features")` gives the last hidden values.
    """

    stages: tuple[tuple[tuple[int, int], ...], ...]
    pools: int
    hidden: int | None
    num_outputs: int

    def features(self, x: jax.Array) -> jax.Array:
        """Map images to the last hidden values (n, m)."""
        return self(x, readout=False)

    @nn.compact
    def __call__(self, x: jax.Array, *, readout: bool = True) -> jax.Array:
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
        return nn.Dense(self.num_outputs)(x) if readout else x


class NormalizedCNN(nn.Module):
    """Convolutions 3×3, each with instance normalization, a ReLU and 2×2 averages."""

    depth: int
    width: int
    num_outputs: int

    def setup(self) -> None:
        """Make the layers."""
        self.convolutions = [nn.Conv(self.width, (3, 3)) for _ in range(self.depth)]
        # Groups of one channel each, over the pixels of one image.
        self.norms = [nn.GroupNorm(num_groups=None, group_size=1) for _ in range(self.depth)]
        self.readout = nn.Dense(self.num_outputs)

    def features(self, x: jax.Array) -> jax.Array:
        """Map images (n, height, width, channels) to the last hidden values (n, m)."""
        if x.ndim != 4 or min(x.shape[1:3]) < 2**self.depth:
            raise ValueError(
                f"x: got inputs of shape {x.shape[1:]}, expected images (height, width, channels) of at least "
                f"{2**self.depth} pixels in both"
            )
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nn.relu(norm(convolution(x)))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return x.reshape(len(x), -1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images to outputs (n, num_outputs)."""
        return self.readout(self.features(x))


class ResNet18(nn.Module):
    """Four stages of two residual blocks, each of two convolutions 3×3, with instance normalization.

    As for 32×32 images: the first convolution has windows 3×3 and no stride, and there are no maxima.
    """

    width: int
    num_outputs: int

    def features(self, x: jax.Array) -> jax.Array:
        """Map images to the last hidden values (n, 8 · width)."""
        return self(x, readout=False)

    @nn.compact
    def __call__(self, x: jax.Array, *, readout: bool = True) -> jax.Array:
        """Map images (n, height, width, channels) to outputs (n, num_outputs)."""
        if x.ndim != 4:
            raise ValueError(f"x: got inputs of shape {x.shape[1:]}, expected images (height, width, channels)")

        def convolved(x: jax.Array, features: int, window: int, stride: int) -> jax.Array:
            convolution = nn.Conv(
                features,
                (window, window),
                (stride, stride),
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
            )
            return nn.GroupNorm(num_groups=None, group_size=1)(convolution(x))

        x = nn.relu(convolved(x, self.width, 3, 1))
        for stage in range(4):
            features = self.width * 2**stage
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                inner = convolved(nn.relu(convolved(x, features, 3, stride)), features, 3, 1)
                direct = x if x.shape[-1] == features and stride == 1 else convolved(x, features, 1, stride)
                x = nn.relu(inner + direct)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_outputs)(x) if readout else x
