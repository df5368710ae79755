"""Small residual networks for small images, and their training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SmallResNet", "accuracy", "train_resnet"]


class SmallResNet(nn.Module):
    """The networks of He et al. 2016 (doi:10.1109/CVPR.2016.90) for CIFAR-10, of 6 n + 2 layers.

    Modules are called as torchvision calls them, so that the stages `layer1`, `layer2`, `layer3`
    are found without naming them.

    Parameters
    ----------
    depth
        8, 14, 20, ...
    width
        Channels of the first stage; the others have two and four times as many.
    stride
        Of the first convolution; 2 halves the positions everywhere, and the time by four.
    classes
        Number of outputs.
    """

    def __init__(self, *, depth: int, width: int = 16, stride: int = 2, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2, at least 8; got {depth}.")
        self.conv1 = nn.Conv2d(3, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (sample, class) of images (sample, 3, height, width)."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or entering != leaving:
            self.downsample = nn.Sequential(
                nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Return (sample, channel, height, width)."""
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(branch + self.downsample(maps))


def _stage(entering: int, leaving: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(entering, leaving, stride)
    return nn.Sequential(first, *(BasicBlock(leaving, leaving, 1) for _ in range(blocks - 1)))


def train_resnet(
    images: Tensor,
    labels: Tensor,
    *,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    normalise: Callable[[Tensor], Tensor],
    steps: int,
    seed: int,
    depth: int,
    width: int,
    batch_size: int = 128,
    learning_rate: float = 0.1,
) -> SmallResNet:
    """Train one network by stochastic gradient descent.

    Nesterov momentum of 0.9, weight decay of 5e-4, a rate that rises for a fifth of the steps and
    then falls to zero.

    Parameters
    ----------
    images, labels
        (sample, 3, height, width) in [0, 1], and (sample,) int64.
    augment
        Varies a batch of images in [0, 1].
    normalise
        Makes of such images what the network reads.
    steps, batch_size, learning_rate
        Of the descent; the rate is the highest.
    seed
        Decides initial values, batches and variations.
    depth, width
        Of the network.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallResNet(depth=depth, width=width)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        network.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / (0.2 * steps), 1.25 * (1 - step / steps), 1.0),
    )
    per_epoch = max(len(images) // batch_size, 1)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        chosen = order[step % per_epoch * batch_size :][:batch_size]
        batch = normalise(augment(images[chosen], generator))
        loss = F.cross_entropy(
            network(batch.contiguous(memory_format=torch.channels_last)), labels[chosen]
        )
        if not math.isfinite(float(loss.detach())):
            raise RuntimeError(f"Training of the network with seed {seed} diverged at step {step}.")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images, as the network reads them, that get their label."""
    decided = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return float((decided == labels).double().mean())
