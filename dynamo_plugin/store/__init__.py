"""The population store: inputs, hidden states and outputs in Zarr, checked on every read."""

from dynamo_plugin.store._array_reader import read_blocks
from dynamo_plugin.store._assembler import Assembler
from dynamo_plugin.store._blocks import ArrayBlocks, BlockRecord
from dynamo_plugin.store._lease import Share
from dynamo_plugin.store._location import StoreLike
from dynamo_plugin.store._plan import ModelBlocks, Plan, strided_rows
from dynamo_plugin.store._values import are_finite
from dynamo_plugin.store.computed import ComputedModel, ComputedPopulation
from dynamo_plugin.store.inputs import PopulationInputs
from dynamo_plugin.store.joining import join_populations
from dynamo_plugin.store.model_status import ModelStatus
from dynamo_plugin.store.model_writer import ModelWriter
from dynamo_plugin.store.projections import (
    Projection,
    fitted_projection,
    projected_shape,
    random_projection,
)
from dynamo_plugin.store.reader import Population, open_population
from dynamo_plugin.store.selecting import select_models
from dynamo_plugin.store.shuffled import shuffle_time
from dynamo_plugin.store.stored_inputs import StoredInputs
from dynamo_plugin.store.twins import Reparametrisation, add_twins, twin_name
from dynamo_plugin.store.verify import Problem, VerifyReport, verify_population
from dynamo_plugin.store.weighing import Weight, weigh_inputs, weigh_model
from dynamo_plugin.store.writer import PopulationWriter

__all__ = [
    "ArrayBlocks",
    "Assembler",
    "BlockRecord",
    "ComputedModel",
    "ComputedPopulation",
    "ModelBlocks",
    "ModelStatus",
    "ModelWriter",
    "Plan",
    "Population",
    "PopulationInputs",
    "PopulationWriter",
    "Problem",
    "Projection",
    "Reparametrisation",
    "Share",
    "StoreLike",
    "StoredInputs",
    "VerifyReport",
    "Weight",
    "add_twins",
    "are_finite",
    "fitted_projection",
    "join_populations",
    "open_population",
    "projected_shape",
    "random_projection",
    "read_blocks",
    "select_models",
    "shuffle_time",
    "strided_rows",
    "twin_name",
    "verify_population",
    "weigh_inputs",
    "weigh_model",
]
