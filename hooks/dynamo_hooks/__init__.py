"""Adapters that read hidden states out of networks, one module per framework or architecture.

They reach `dynamo_plugin` by entry point, as anybody's do. Importing this package imports none of
them.
"""
