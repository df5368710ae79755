"""Specs as JSON, and the arrays that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store._documents import ArrayLayout, plain_json
from dynamo_plugin.store._keys import path_key
from dynamo_plugin.store.projections import check_reduction, projected_shape
from dynamo_plugin.types import OutputSpec, RowAxis, SiteSpec, TrajectorySpec

if TYPE_CHECKING:
    from dynamo_plugin.types import JSON

__all__ = [
    "MOST_AXES",
    "MOST_NUMBERS",
    "Sizes",
    "check_spec",
    "model_path",
    "output_layout",
    "reduction_layouts",
    "row_dimension",
    "site_layouts",
    "spec_from_json",
    "spec_to_json",
]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long the arrays of every model of a population are."""

    samples: int
    """Number of samples."""
    rows: Callable[[int], int]
    """Steps of all samples together, counting every so many."""
    version: int
    """Format version of the population."""


_FLOATS = ("float16", "float32", "float64")

MOST_AXES = 30
"""Of one row: NumPy takes 32 from version 1 on, and batches have two more."""

MOST_NUMBERS = 2**59
"""In one row, so that no product of lengths leaves the range of NumPy's indices."""


def model_path(model_id: str) -> str:
    """Return the key of a model's group."""
    return f"models/{path_key(model_id)}"


def row_dimension(axis: RowAxis, every: int = 1) -> str:
    """Return the name of axis 0 of an array whose rows are time steps or samples."""
    if axis == "sample":
        return "sample"
    return "row" if every == 1 else f"every {every} rows"


def spec_to_json(spec: TrajectorySpec) -> dict[str, JSON]:
    """Return a spec as it is stored."""
    return {
        "adapter": spec.adapter,
        "sites": [
            {
                "name": site.name,
                "shape": list(site.shape),
                "dtype": site.dtype,
                "axis": site.axis,
                "source_dtype": site.source_dtype,
                "every": site.every,
                "reduction": None
                if site.reduction is None
                else plain_json(dict(site.reduction), "A reduction"),
            }
            for site in spec.sites
        ],
        "output": {
            "group": spec.output.group,
            "shape": list(spec.output.shape),
            "dtype": spec.output.dtype,
            "axis": spec.output.axis,
        },
        "options": plain_json(dict(spec.options), "The options of a spec"),
    }


def spec_from_json(value: Any, *, version: int) -> TrajectorySpec:
    """Return the spec that `spec_to_json` wrote, in this or an earlier format version.

    Raises
    ------
    InvalidInput
        It is not one.
    """
    try:
        spec = TrajectorySpec(
            adapter=value["adapter"],
            sites=tuple(_site_from_json(site, version) for site in value["sites"]),
            output=OutputSpec(
                value["output"]["group"],
                tuple(value["output"]["shape"]),
                value["output"]["dtype"],
                value["output"]["axis"],
            ),
            options=value["options"],
        )
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"Not the spec of a model: {error!r}") from error
    check_spec(spec)
    return spec


def _site_from_json(value: Any, version: int) -> SiteSpec:
    site = SiteSpec(value["name"], tuple(value["shape"]), value["dtype"], value["axis"])
    if version == 1:
        return site
    return replace(
        site,
        source_dtype=value["source_dtype"],
        every=value["every"],
        reduction=value["reduction"],
    )


def check_spec(spec: TrajectorySpec) -> None:
    """Check that a model of this spec can be stored.

    Raises
    ------
    InvalidInput
        There is no site, two share a name, or a shape, dtype or axis is not one that is stored.
    """
    names = [site.name for site in spec.sites]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"Expected at least one site and every name once, got {names}.")
    if not isinstance(spec.adapter, str) or not isinstance(spec.options, Mapping):
        raise InvalidInput(
            f"Expected the name of an adapter and a mapping of options, got {spec.adapter!r} "
            f"and {spec.options!r}."
        )
    places = [(f"site {s.name!r}", s.name, s.shape, s.dtype, s.axis) for s in spec.sites]
    output = spec.output
    places.append(
        (f"output {output.group!r}", output.group, output.shape, output.dtype, output.axis)
    )
    for where, name, shape, dtype, axis in places:
        if not isinstance(name, str):
            raise InvalidInput(f"Expected text as a name, got {name!r}.")
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
            raise InvalidInput(f"Expected positive lengths in the shape of {where}, got {shape}.")
        if len(shape) > MOST_AXES or math.prod(shape) > MOST_NUMBERS:
            raise InvalidInput(
                f"Expected at most {MOST_AXES} axes and 2^59 numbers in a row of {where}, got "
                f"{len(shape)} axes and {math.prod(shape)} numbers."
            )
        if dtype not in _FLOATS:
            raise InvalidInput(f"Expected one of {_FLOATS} as dtype of {where}, got {dtype!r}.")
        if axis not in ("time", "sample"):
            raise InvalidInput(f"Expected 'time' or 'sample' as axis of {where}, got {axis!r}.")
    for site in spec.sites:
        strided = type(site.every) is int and 1 < site.every < 2**63 and site.axis == "time"
        if not strided and (site.every != 1 or type(site.every) is not int):
            raise InvalidInput(
                f"Expected every = 1, or more on the axis 'time', of site {site.name!r}, got "
                f"{site.every!r} on the axis {site.axis!r}."
            )
        check_reduction(site)
        if not isinstance(site.source_dtype, str | None):
            raise InvalidInput(f"Expected text as source dtype, got {site.source_dtype!r}.")


def site_layouts(model_id: str, spec: TrajectorySpec, sizes: Sizes) -> dict[str, ArrayLayout]:
    """Return the array of every site of a model, in the order of the spec."""
    single = len(spec.sites) == 1
    return {
        site.name: ArrayLayout(
            path=f"{model_path(model_id)}/states/{path_key(site.name)}",
            shape=(sizes.rows(site.every) if site.axis == "time" else sizes.samples, *site.shape),
            dtype=site.dtype,
            # xarray wants equal lengths for equal names, and sites differ in width
            dimensions=(
                row_dimension(site.axis, site.every),
                *_axis_names("unit", len(site.shape), "" if single else f" of {site.name}"),
            ),
            attributes={"site": site.name, "axis": site.axis}
            | ({"every": site.every} if site.every > 1 else {}),
            version=sizes.version,
        )
        for site in spec.sites
    }


def reduction_layouts(
    model_id: str, spec: TrajectorySpec, sizes: Sizes
) -> dict[str, dict[str, ArrayLayout]]:
    """Return, per site that was projected onto principal components, the arrays that hold them.

    `mean` (width,), `components` (component, width), and `variances` (component + 1,): along each
    component, and last what lies outside all of them.
    """
    layouts: dict[str, dict[str, ArrayLayout]] = {}
    for site in spec.sites:
        if site.reduction is None or site.reduction.get("projection") != "pca":
            continue
        folder = f"{model_path(model_id)}/reductions/{path_key(site.name)}"
        (components,), width = site.shape, math.prod(projected_shape(site))
        arrays: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
            "mean": ((width,), ("unit",)),
            "components": ((components, width), ("component", "unit")),
            "variances": ((components + 1,), ("part",)),
        }
        layouts[site.name] = {
            name: ArrayLayout(
                f"{folder}/{name}",
                shape,
                "float64",
                dimensions,
                {"site": site.name},
                version=sizes.version,
            )
            for name, (shape, dimensions) in arrays.items()
        }
    return layouts


def output_layout(model_id: str, spec: TrajectorySpec, sizes: Sizes) -> ArrayLayout:
    """Return the array of a model's outputs."""
    output = spec.output
    return ArrayLayout(
        path=f"{model_path(model_id)}/outputs/{path_key(output.group)}",
        shape=(sizes.rows(1) if output.axis == "time" else sizes.samples, *output.shape),
        dtype=output.dtype,
        dimensions=(row_dimension(output.axis), *_axis_names("output", len(output.shape), "")),
        attributes={"group": output.group, "axis": output.axis},
        version=sizes.version,
    )


def _axis_names(base: str, rank: int, suffix: str) -> tuple[str, ...]:
    if rank == 1:
        return (base + suffix,)
    return tuple(f"{base}_{axis}{suffix}" for axis in range(rank))
