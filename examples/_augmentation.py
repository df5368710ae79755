"""Two ways to vary training images: shift and flip, or all that photographs may suffer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AUGMENTATIONS", "shift_and_flip", "strong"]

STEPS = 2
"""Operations that one image goes through, one after the other."""

MOST_DEGREES, MOST_SHEAR, MOST_SHIFT = 30.0, 0.3, 0.3
"""Bounds of rotations, shears and shifts, the last as a share of the image."""

CUT = 0.5
"""Side of the square that is cut out, as a share of the image."""


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to an eighth of the image, with zeros around it, and flip half of the images.

    As He et al. 2016 (doi:10.1109/CVPR.2016.90) trained on CIFAR-10.

    Parameters
    ----------
    images
        (sample, channel, height, width) in [0, 1].
    generator
        Source of randomness.
    """
    count, _, height, width = images.shape
    pad = height // 8
    padded = F.pad(images, (pad, pad, pad, pad))
    top, left = (torch.randint(2 * pad + 1, (count, 1), generator=generator) for _ in range(2))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    samples = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None]].movedim(3, 1)


def strong(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, flip, apply two random operations, and cut a square out.

    RandAugment (Cubuk et al. 2020, doi:10.1109/CVPRW50498.2020.00359) with a strength that is drawn
    for every image, and Cutout (DeVries and Taylor 2017, arXiv:1708.04552). Parameters are those of
    `shift_and_flip`.
    """
    images = shift_and_flip(images, generator)
    for _ in range(STEPS):
        which = torch.randint(len(OPERATIONS), (len(images),), generator=generator)
        strengths = 2 * torch.rand(len(images), generator=generator) - 1
        changed = images.clone()
        for number, operation in enumerate(OPERATIONS):
            own = which == number
            if bool(own.any()):
                changed[own] = operation(images[own], strengths[own])
        images = changed.clamp(0, 1)
    return _cut_out(images, generator)


def _affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample under (sample, 2, 3) matrices of image coordinates in [-1, 1]."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _identities(strengths: Tensor) -> Tensor:
    return torch.eye(2, 3).repeat(len(strengths), 1, 1)


def _rotate(images: Tensor, strengths: Tensor) -> Tensor:
    matrices, angles = _identities(strengths), strengths * math.radians(MOST_DEGREES)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angles.sin(), angles.sin()
    return _affine(images, matrices)


def _moved(row: int, column: int, most: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a shear or a shift: one entry of the matrix."""

    def operation(images: Tensor, strengths: Tensor) -> Tensor:
        matrices = _identities(strengths)
        matrices[:, row, column] = strengths * most
        return _affine(images, matrices)

    return operation


def _blended(degenerate: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return an operation that moves images towards a degenerate version, or away from it."""

    def operation(images: Tensor, strengths: Tensor) -> Tensor:
        factor = 1 + 0.9 * strengths[:, None, None, None]
        without = degenerate(images)
        return without + factor * (images - without)

    return operation


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # luma of ITU-R BT.601
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def _blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _posterise(images: Tensor, strengths: Tensor) -> Tensor:
    levels = 2.0 ** (8 - (5 * strengths.abs()).round())[:, None, None, None]
    return (images * (levels - 1)).round() / (levels - 1)


def _solarise(images: Tensor, strengths: Tensor) -> Tensor:
    return torch.where(images > 1 - strengths.abs()[:, None, None, None], 1 - images, images)


def _stretch(images: Tensor, strengths: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1 / 255)


def _cut_out(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    inside = []
    for size in (height, width):
        centre = torch.randint(size, (count, 1), generator=generator)
        inside.append((torch.arange(size) - centre).abs() <= CUT * size / 2)
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(square, 0.5)


OPERATIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda images, strengths: images,
    _rotate,
    _moved(0, 1, MOST_SHEAR),
    _moved(1, 0, MOST_SHEAR),
    _moved(0, 2, 2 * MOST_SHIFT),
    _moved(1, 2, 2 * MOST_SHIFT),
    _blended(torch.zeros_like),  # brightness
    _blended(lambda images: _grey(images).mean((1, 2, 3), keepdim=True)),  # contrast
    _blended(_grey),  # colour
    _blended(_blurred),  # sharpness
    _posterise,
    _solarise,
    _stretch,
]

AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda images, generator: images,
    "shift": shift_and_flip,
    "strong": strong,
}
"""By name; each takes images in [0, 1] and a generator."""
