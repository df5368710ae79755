"""What each axis of a foreign tensor is: samples, time steps or units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.registry.copying import copied
from dynamo_plugin.types import SequenceBatch

from ._reading import AxisRole, Reading, Run

__all__ = ["Axes", "arranged", "axis_roles"]


def _mend_output() -> str:
    return "Choose another part of the result with output=, or reshape it in forward=."


@dataclass(frozen=True, slots=True)
class Axes:
    """What each axis of the states and of the output of a model is."""

    sites: Mapping[str, Sequence[AxisRole]]
    """Site name to role of every axis, in order of computation."""
    output: Sequence[AxisRole]

    @classmethod
    def found(
        cls,
        reading: Reading,
        runs: tuple[Run, Run],
        sizes: Sequence[tuple[int, int]],
        inputs: SequenceBatch,
    ) -> Axes:
        """Tell the axes apart by two runs on batches of the given (samples, time).

        Raises
        ------
        CaptureError
            A site or the output has axes that cannot be told apart or stored.
        """
        first, second = runs
        second.check_sites(first.states)
        sites: dict[str, Sequence[AxisRole]] = {}
        for name, state in first.states.items():
            sites[name] = reading.known_axes(state) or axis_roles(
                state,
                second.states[name],
                sizes,
                what=f"site {name!r}",
                mend=lambda: reading.mend(inputs),
            )
        return cls(sites, axis_roles(first.output, second.output, sizes))

    def arrange(self, run: Run) -> Run:
        """Return a run with axes (sample, units...) or (sample, time, units...), contiguous.

        Raises
        ------
        CaptureError
            It has other sites, or their tensors other axes, than there were.
        """
        run.check_sites(self.sites)
        return replace(
            run,
            states={
                name: _contiguous(arranged(run.states[name], roles, what=f"site {name!r}"))
                for name, roles in self.sites.items()
            },
            output=_contiguous(arranged(run.output, self.output)),
        )

    def all_in_time(self) -> bool:
        """Return whether every site and the output have one row per step."""
        return all("time" in roles for roles in (*self.sites.values(), self.output))


def axis_roles(
    first: Tensor,
    second: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    what: str = "the output",
    mend: Callable[[], str] = _mend_output,
) -> tuple[AxisRole, ...]:
    """Say what each axis of a tensor is, from two runs on batches of different sizes.

    Parameters
    ----------
    first, second
        What the same model gave on two batches without padding.
    sizes
        (samples, time) of the two batches. Sample counts differ; a time never equals a sample
        count. Where inputs have no time, the times are 0, which no axis is long.
    what
        What messages call the tensor.
    mend
        Says how to mend it, for messages.

    Returns
    -------
    tuple of str
        One of `sample`, `time` and `unit` per axis: sample once, time at most once.

    Raises
    ------
    CaptureError
        An axis follows neither, two follow the same, or the times do not differ and an axis
        could be either.

    Examples
    --------
    >>> import torch
    >>> axis_roles(torch.zeros(4, 2, 8), torch.zeros(3, 5, 8), [(2, 4), (5, 3)])
    ('time', 'sample', 'unit')
    """
    samples, times = zip(*sizes, strict=True)
    came = f"shapes {tuple(first.shape)} and {tuple(second.shape)} for inputs of " + " and ".join(
        f"{sample} samples x {time} steps" for sample, time in sizes
    )
    expected = (
        "expected one axis of samples, at most one of time steps and any number of units, in any "
        "order, such as (sample, unit) or (sample, time, unit)"
    )
    roles: list[AxisRole] = []
    for pair in zip(first.shape, second.shape, strict=False):
        if pair == samples:
            roles.append("sample")
        elif pair == times:
            if times[0] == times[1]:
                raise CaptureError(
                    f"{what} has {came}: an axis of {pair[0]} may be the time steps or the "
                    "units, and the model cannot be run on another number of steps to find out. "
                    f"{mend()}"
                )
            roles.append("time")
        elif pair[0] == pair[1]:
            roles.append("unit")
        else:
            raise CaptureError(
                f"{what} has {came}: axis {len(roles)} follows neither. {expected}. {mend()}"
            )
    if first.dim() == second.dim() and roles.count("time") > 1:
        raise CaptureError(
            f"{what} has {came}: two axes follow time, as in attention patterns, so that its rows "
            f"have no fixed size; {expected}. {mend()}"
        )
    if first.dim() != second.dim() or roles.count("sample") != 1:
        raise CaptureError(f"{what} has {came}; {expected}. {mend()}")
    return tuple(roles)


def arranged(tensor: Tensor, roles: Sequence[AxisRole], *, what: str = "the output") -> Tensor:
    """Return a tensor as (sample, units...) or (sample, time, units...), one unit if it has none.

    >>> import torch
    >>> arranged(torch.zeros(7, 2), ["time", "sample"]).shape
    torch.Size([2, 7, 1])
    """
    if tensor.dim() != len(roles):
        raise CaptureError(
            f"{what} has shape {tuple(tensor.shape)}; on the first samples it had the axes "
            f"({', '.join(roles)}). The model must give the same kind of result every time."
        )
    order = [
        axis
        for role in ("sample", "time", "unit")
        for axis, found in enumerate(roles)
        if found == role
    ]
    tensor = tensor.permute(order)
    return tensor if "unit" in roles else tensor.unsqueeze(-1)


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else copied(tensor)
