"""Recording: models and inputs in, a population store out."""

from dynamo_plugin.recording.capturing import capture
from dynamo_plugin.recording.inputs import as_population_inputs
from dynamo_plugin.recording.inspecting import inspect_models
from dynamo_plugin.recording.inspection import InspectReport
from dynamo_plugin.recording.live import live_population
from dynamo_plugin.recording.reduction import Reduction
from dynamo_plugin.recording.registering import register_adapter

__all__ = [
    "InspectReport",
    "Reduction",
    "as_population_inputs",
    "capture",
    "inspect_models",
    "live_population",
    "register_adapter",
]
