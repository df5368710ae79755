"""What the user asks to be done to states before they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dynamo_plugin.errors import InvalidInput, suggest

if TYPE_CHECKING:
    from dynamo_plugin.types import JSON

__all__ = ["Reduce", "Reduction", "as_rules", "rules_as_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How the states of a site are made smaller before they are stored.

    What is asked for happens in the order of the fields.

    Raises
    ------
    InvalidInput
        A field has a value that it cannot have, or one that nothing would use.

    Examples
    --------
    >>> Reduction(pool="mean", project=64, dtype="float16").every
    1
    """

    every: int = 1
    """Only steps 0, every, 2 every, ... of each sample; above 1 only for sites with time."""
    pool: Literal["mean", "max"] | None = None
    """Pool over positions, in rows of shape (channels, length) or (channels, height, width)."""
    pool_size: int | None = None
    """Most positions that are left along each axis; by default none are, and rows become
    (channels,)."""
    project: int | None = None
    """Numbers onto which a row, flattened, is projected."""
    projection: Literal["random", "pca"] = "random"
    """`random`: signs that follow from the seed, the same for every model and site of one width
    (Achlioptas 2003, doi:10.1016/S0022-0000(03)00025-4). `pca`: principal components of the states
    of each model, which are stored with it."""
    seed: int = 0
    """Of the signs, or of the samples on which principal components are fitted."""
    pca_samples: int = 1024
    """Samples, at random, on which principal components are fitted."""
    dtype: Literal["float16", "float32"] | None = None
    """Of what is stored; by default that of the site, float32 for projections of float16."""

    def __post_init__(self) -> None:
        for name in ("every", "pool_size", "project", "pca_samples"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidInput(f"{name} must be a positive integer; got {value!r}.")
        if type(self.seed) is not int or self.seed < 0:
            raise InvalidInput(f"seed must be an integer of at least 0; got {self.seed!r}.")
        choices: dict[str, tuple[str | None, ...]] = {
            "pool": ("mean", "max", None),
            "projection": ("random", "pca"),
            "dtype": ("float16", "float32", None),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = [choice for choice in allowed if choice is not None]
                raise InvalidInput(
                    f"{name} must be {' or '.join(map(repr, known))}; got {getattr(self, name)!r}."
                )
        fitted = self.project is not None and self.projection == "pca"
        for name, used, owner in (
            ("pool_size", self.pool is not None, "pool"),
            ("projection", self.project is not None, "project"),
            ("seed", self.project is not None, "project"),
            ("pca_samples", fitted, "projection = 'pca'"),
        ):
            if not used and getattr(self, name) != _DEFAULTS[name]:
                raise InvalidInput(f"{name} is only used together with {owner}; give both or none.")


_DEFAULTS = {each.name: each.default for each in fields(Reduction) if each.default is not MISSING}

Reduce: TypeAlias = "Mapping[str, Reduction | Mapping[str, Any]]"
"""From patterns over the names of sites to what is done to them; the first that matches counts."""


def as_rules(reduce: Reduce | None) -> tuple[tuple[str, Reduction], ...]:
    """Return patterns and reductions, in order.

    Raises
    ------
    InvalidInput
        Not a mapping from patterns to reductions or mappings of their fields.

    Examples
    --------
    >>> as_rules({"layer*": {"every": 4}})[0][1].every
    4
    """
    if reduce is None:
        return ()
    if not isinstance(reduce, Mapping):
        raise InvalidInput(
            "reduce must be a mapping from patterns over the names of sites to reductions, such as "
            f"{{'layer*': Reduction(every=4)}}; got {type(reduce).__name__}."
        )
    rules: list[tuple[str, Reduction]] = []
    for pattern, asked in reduce.items():
        where = f"reduce[{pattern!r}]"
        if not isinstance(pattern, str) or not pattern:
            raise InvalidInput(f"{where}: patterns must be texts that are not empty.")
        if isinstance(asked, Reduction):
            rules.append((pattern, asked))
            continue
        if not isinstance(asked, Mapping):
            raise InvalidInput(
                f"{where} must be a Reduction or a mapping of its fields; got "
                f"{type(asked).__name__}."
            )
        for name in asked:
            if name not in _DEFAULTS:
                raise InvalidInput(
                    f"{where}: there is no field {name!r}. {suggest(str(name), _DEFAULTS)}"
                )
        try:
            rules.append((pattern, Reduction(**asked)))
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error}") from error
    return tuple(rules)


def rules_as_json(rules: tuple[tuple[str, Reduction], ...]) -> list[JSON]:
    """Return rules as they are kept in the configuration of a capture, in order."""
    return [{"pattern": pattern, **asdict(rule)} for pattern, rule in rules]
