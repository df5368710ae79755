"""Comparisons of what networks compute: one module per family, all reached by name."""

from __future__ import annotations

from dynamo_plugin.metrics.all_pairs import pairwise
from dynamo_plugin.metrics.cca import CCA, CCAR2, SVCCA
from dynamo_plugin.metrics.choosing import metric
from dynamo_plugin.metrics.cka import CKA
from dynamo_plugin.metrics.distances import PairwiseDistances
from dynamo_plugin.metrics.procrustes import Procrustes
from dynamo_plugin.metrics.pwcca import PWCCA
from dynamo_plugin.metrics.rsa import RSA
from dynamo_plugin.metrics.shape import ShapeMetric

__all__ = [
    "CCA",
    "CCAR2",
    "CKA",
    "PWCCA",
    "RSA",
    "SVCCA",
    "PairwiseDistances",
    "Procrustes",
    "ShapeMetric",
    "metric",
    "pairwise",
]
