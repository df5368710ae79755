"""Recording: models and inputs in, a population store out."""

from dynamo_plugin.recording.capturing import capture
from dynamo_plugin.recording.inputs import as_population_inputs
from dynamo_plugin.recording.reduction import Reduction

__all__ = ["Reduction", "as_population_inputs", "capture"]
