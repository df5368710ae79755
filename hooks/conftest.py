"""Leave out the doctests that need an extra which is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("flax") else ["dynamo_hooks/flax_nnx.py"]
