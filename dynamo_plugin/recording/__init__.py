"""Recording: models and inputs in, a population store out."""

from dynamo_plugin.recording.capturing import capture
from dynamo_plugin.recording.inputs import as_population_inputs

__all__ = ["as_population_inputs", "capture"]
