"""Comparisons of what networks compute: one module per family, all reached by name."""

from __future__ import annotations

from dynamo_plugin.metrics.all_pairs import pairwise
from dynamo_plugin.metrics.behaviour import Disagreement, JensenShannon
from dynamo_plugin.metrics.cca import CCA, CCAR2, SVCCA
from dynamo_plugin.metrics.choosing import metric
from dynamo_plugin.metrics.cka import CKA
from dynamo_plugin.metrics.distances import PairwiseDistances
from dynamo_plugin.metrics.dsa import DSA
from dynamo_plugin.metrics.embedded import FunctionalDistance, PullbackDistance, ThetaDistance
from dynamo_plugin.metrics.neighbours import NeighbourOverlap
from dynamo_plugin.metrics.predictivity import Predictivity
from dynamo_plugin.metrics.procrustes import Procrustes
from dynamo_plugin.metrics.pwcca import PWCCA
from dynamo_plugin.metrics.rsa import RSA
from dynamo_plugin.metrics.shape import ShapeMetric

__all__ = [
    "CCA",
    "CCAR2",
    "CKA",
    "DSA",
    "PWCCA",
    "RSA",
    "SVCCA",
    "Disagreement",
    "FunctionalDistance",
    "JensenShannon",
    "NeighbourOverlap",
    "PairwiseDistances",
    "Predictivity",
    "Procrustes",
    "PullbackDistance",
    "ShapeMetric",
    "ThetaDistance",
    "metric",
    "pairwise",
]
