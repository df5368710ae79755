"""Recording: models and inputs in, a population store out."""

from dynamo_plugin.recording.capturing import capture
from dynamo_plugin.recording.inputs import as_population_inputs
from dynamo_plugin.recording.registering import register_adapter

__all__ = ["as_population_inputs", "capture", "register_adapter"]
