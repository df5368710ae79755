"""Adapters that read hidden states out of networks, one module per framework or architecture.

They reach `dynamo_plugin` by entry point, as anybody's do. Importing this package imports none of
them.

Modules without an underscore hold an adapter each. Those that begin with `_layer`, `_recurrent`,
`_huggingface`, `_lens` and `_nnx` belong to one of them, the others to all: an adapter says what is
read as a `Reading` (`_reading`), `_describing` probes the model with it, and `_recording` records.
"""
