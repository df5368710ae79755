"""Executors that the command line names."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from dynamo_plugin.errors import InvalidInput

__all__ = ["connected"]

_PATIENCE = 30  # seconds to reach a scheduler


@contextmanager
def connected(address: str | None) -> Iterator[Executor | None]:
    """Yield the executor at an address, None for no address.

    Parameters
    ----------
    address
        `dask://host:port` of a Dask scheduler, whose workers must have this package installed and
        reach the models and the store under the same names.

    Raises
    ------
    InvalidInput
        The address is of another kind, Dask is not installed, or no scheduler answers.
    """
    if address is None:
        yield None
        return
    scheme, separator, place = address.partition("://")
    if scheme != "dask" or not separator or not place:
        raise InvalidInput(
            f"Expected an executor of the form dask://host:port, got {address!r}. For processes "
            "on this machine use workers (--workers)."
        )
    try:
        from distributed import Client
    except ImportError as error:
        raise InvalidInput(f"{address} needs Dask: pip install 'dynamo-plugin[dask]'.") from error
    try:
        client = Client(f"tcp://{place}", timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"No Dask scheduler answers at {place}: {error}. Start one with `dask scheduler`, or "
            "check the address."
        ) from error
    with client, client.get_executor() as executor:
        yield executor
