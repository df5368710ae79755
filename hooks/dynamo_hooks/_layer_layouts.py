"""Feed-forward networks whose stages are recognised by their structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["known_stages"]


def known_stages(model: nn.Module) -> list[str] | None:
    """Return the paths of the stages of a network, if its layout is a known one.

    Known are networks with `feature_info`, as timm's have, and residual networks whose stages are
    called `layer1`, `layer2`, ... next to a stem or a head, as torchvision's are. They may lie
    inside one other module, such as a segmentation network; two of them are not told apart.

    >>> network = nn.Module()
    >>> network.conv1 = nn.Conv2d(3, 4, 3)
    >>> network.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3))
    >>> network.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3))
    >>> known_stages(network)
    ['layer1', 'layer2']
    """
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if any(not outer or path.startswith(f"{outer}.") for outer in found):
            continue
        stages = _timm_stages(module) or _residual_stages(module)
        if stages:
            found[path] = [f"{path}.{stage}" if path else stage for stage in stages]
    return next(iter(found.values())) if len(found) == 1 else None


def _timm_stages(module: nn.Module) -> list[str] | None:
    info = getattr(module, "feature_info", None)
    entries: list[Any] = []
    if callable(getattr(info, "get_dicts", None)):
        entries = list(info.get_dicts())  # type: ignore[union-attr]
    elif isinstance(info, list | tuple):
        entries = list(info)
    names = list(_module_names(entries))
    paths = dict(module.named_modules())
    known = bool(names) and len(names) == len(entries) and len(set(names)) == len(names)
    return names if known and all(name and name in paths for name in names) else None


def _module_names(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"module", "num_chs", "reduction"} <= set(entry):
            continue
        # Some entries of timm mean what a module receives; these cannot be read as a stage.
        if entry.get("hook_type") in (None, "", "forward") and isinstance(entry["module"], str):
            yield entry["module"]


def _residual_stages(module: nn.Module) -> list[str] | None:
    children = dict(module.named_children())
    stages: list[str] = []
    while (name := f"layer{len(stages) + 1}") in children:
        stages.append(name)
    if len(stages) < 2 or not all(any(children[name].children()) for name in stages):
        return None
    others = (child for name, child in children.items() if name not in stages)
    return stages if any(any(True for _ in child.parameters()) for child in others) else None
