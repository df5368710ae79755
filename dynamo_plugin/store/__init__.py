"""The population store: inputs, hidden states and outputs in Zarr, checked on every read."""

from dynamo_plugin.store._location import StoreLike
from dynamo_plugin.store.inputs import PopulationInputs
from dynamo_plugin.store.model_writer import ModelWriter
from dynamo_plugin.store.reader import Population, open_population
from dynamo_plugin.store.verify import Problem, VerifyReport, verify_population
from dynamo_plugin.store.writer import ModelStatus, PopulationWriter

__all__ = [
    "ModelStatus",
    "ModelWriter",
    "Population",
    "PopulationInputs",
    "PopulationWriter",
    "Problem",
    "StoreLike",
    "VerifyReport",
    "open_population",
    "verify_population",
]
