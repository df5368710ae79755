"""Small bundled populations with known answers, trained in seconds."""

from dynamo_plugin.tasks.digits import train_digits_population
from dynamo_plugin.tasks.flip_flop import flip_flop_targets, train_flip_flop_population
from dynamo_plugin.tasks.integrator import integrator_targets, train_integrator_population
from dynamo_plugin.tasks.network import RecurrentNetwork, permuted_twin
from dynamo_plugin.tasks.population import TaskPopulation, merge
from dynamo_plugin.tasks.pulses import pulse_inputs
from dynamo_plugin.tasks.scores import accuracy, r2, sign_accuracy
from dynamo_plugin.tasks.stacked import StackedRecurrent
from dynamo_plugin.tasks.train import train_stacked

__all__ = [
    "RecurrentNetwork",
    "StackedRecurrent",
    "TaskPopulation",
    "accuracy",
    "flip_flop_targets",
    "integrator_targets",
    "merge",
    "permuted_twin",
    "pulse_inputs",
    "r2",
    "sign_accuracy",
    "train_digits_population",
    "train_flip_flop_population",
    "train_integrator_population",
    "train_stacked",
]
