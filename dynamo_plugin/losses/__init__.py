"""Losses of the objective: hidden (`l2`, `l1`) and output (`kl`, `mse`)."""

from __future__ import annotations

from dynamo_plugin.losses.kl import kl
from dynamo_plugin.losses.l1 import l1
from dynamo_plugin.losses.l2 import l2
from dynamo_plugin.losses.mse import mse

__all__ = ["kl", "l1", "l2", "mse"]
