"""Embeddings on disk: safetensors for numbers, JSON for the rest, nothing that runs code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Final

import pandas as pd
import safetensors
import torch
from safetensors.torch import load, save

from dynamo_plugin.embedding.model_embedding import ModelEmbedding, Provenance
from dynamo_plugin.errors import (
    CorruptBlock,
    DynamoError,
    StoreExists,
    StoreNotFound,
    UnsupportedFormat,
)
from dynamo_plugin.registry import get_registry
from dynamo_plugin.store import Population
from dynamo_plugin.training import FitConfig, make_state_maps
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec, StageSpec

__all__ = ["load_embedding", "require_writable", "save_embedding"]

FORMAT: Final = "dynamo-embedding"
VERSION: Final = 4
DOCUMENT: Final = "embedding.json"
TENSORS: Final = "tensors.safetensors"


def save_embedding(embedding: ModelEmbedding, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an embedding into a folder.

    The folder holds `embedding.json` (ids, metadata, configuration, history, provenance) and
    `tensors.safetensors` (thetas, meta-model, state maps, sample indices). It appears whole or not
    at all: it is written under another name first.

    Parameters
    ----------
    embedding
        What to write.
    path
        The folder to make.
    overwrite
        Whether an embedding that is there may be replaced. Anything else is never touched.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    StoreExists
        If something is there.
    """
    target = require_writable(path, overwrite=overwrite)
    tensors = {
        "thetas": embedding.thetas,
        "training_samples": embedding.training_samples,
        "held_out_samples": embedding.held_out_samples,
        **_tensors_of("meta_model", embedding.meta_model),
        **_tensors_of("state_maps", embedding.state_maps),
        **_tensors_of("common_maps", embedding.common_maps),
    }
    blob = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    document = {
        "format": FORMAT,
        "version": VERSION,
        "ids": list(embedding.ids),
        "output_groups": list(embedding.output_groups),
        "metadata": _frame_to_json(embedding.metadata),
        "history": _frame_to_json(embedding.history),
        "config": embedding.config.to_json(),
        "stopped": embedding.stopped,
        "spec": dataclasses.asdict(embedding.meta_model.spec),
        "units": {stage: list(units) for stage, units in embedding.state_maps.units.items()},
        "provenance": dataclasses.asdict(embedding.provenance),
        "population_relative": _relative(embedding.provenance.population, target),
        "others_relative": [_relative(place, target) for place in embedding.provenance.others],
        "tensors_sha256": hashlib.sha256(blob).hexdigest(),
    }
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        (partial / TENSORS).write_bytes(blob)
        (partial / DOCUMENT).write_text(
            json.dumps(document, indent=1, allow_nan=False), encoding="utf-8"
        )
        if target.exists():
            replaced = target.with_name(f".{target.name}.{uuid.uuid4().hex}.replaced")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def require_writable(path: str | Path, *, overwrite: bool) -> Path:
    """Return the folder if an embedding may be written there, else raise `StoreExists`."""
    target = Path(path)
    if not target.exists():
        return target
    if not (target / DOCUMENT).is_file():
        raise StoreExists(
            f"{target} exists and is no embedding, so it is not touched. Choose another folder."
        )
    if not overwrite:
        raise StoreExists(
            f"There is an embedding at {target}. Choose another folder, or replace it with "
            "overwrite=True (--overwrite)."
        )
    return target


def load_embedding(path: str | Path, *, population: Population | None = None) -> ModelEmbedding:
    """Read an embedding from its folder. Runs no code that the folder names.

    Parameters
    ----------
    path
        The folder that `ModelEmbedding.save` wrote.
    population
        The open population, if it is no longer where it was when the embedding was made.

    Raises
    ------
    StoreNotFound
        If there is no embedding.
    UnsupportedFormat
        If the folder holds something else, or another version.
    CorruptBlock
        If the tensors are not those that were written.
    UnknownName
        If the meta-model family is not installed.
    """
    source = Path(path)
    try:
        text = (source / DOCUMENT).read_text(encoding="utf-8")
        blob = (source / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise StoreNotFound(
            f"There is no embedding at {source}: {Path(str(error.filename)).name} is missing. "
            "Expected a folder that ModelEmbedding.save wrote."
        ) from error
    document = _parse(source, text)
    if hashlib.sha256(blob).hexdigest() != document.get("tensors_sha256"):
        raise CorruptBlock(
            f"{source / TENSORS} is not what was written: its checksum differs. Restore it from a "
            "copy, or fit again."
        )
    try:
        embedding = _assemble(source, *_upgraded(document, load(blob)))
    except (DynamoError, MemoryError):
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UnsupportedFormat(
            f"{source / DOCUMENT} does not describe an embedding of version {VERSION}: "
            f"{type(error).__name__}: {error}."
        ) from error
    return embedding if population is None else embedding.with_population(population)


def _parse(source: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnsupportedFormat(f"{source / DOCUMENT} is not JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UnsupportedFormat(f"{source / DOCUMENT} does not describe a {FORMAT}.")
    if document.get("version") not in range(1, VERSION + 1):
        raise UnsupportedFormat(
            f"{source} has version {document.get('version')!r} of the embedding format; this "
            f"release reads versions up to {VERSION}. Use the release that wrote it."
        )
    return document


def _upgraded(
    document: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a document of an older version, and its tensors, as this one writes them.

    Version 1 knew recurrent networks and free affine maps only. Under version 2, transformers had
    other positions, and `stem="auto"` chose other stems: the same weights would run, and do
    something else. Up to version 3, all dimensions of theta were learned together, and readouts did
    not see theta unless that was said. Readouts were not fitted in the end where nothing says so.
    """
    document = {**document, "config": {"settle_readouts": False, **document["config"]}}
    family = document["config"]["family"]
    if document["version"] == 2 and family in ("transformer", "resnet"):
        raise UnsupportedFormat(
            f"This embedding of the family {family!r} was written under version 2 of the format, "
            "from which on the family computes something else with the same weights. Fit again, or "
            "use the release that wrote it."
        )
    if document["version"] < 4:
        dim = tensors["thetas"].shape[1]
        options = dict(document["config"]["family_options"])
        if family in ("gru", "lstm", "rnn", "resnet", "transformer", "residual"):
            options.setdefault("readout", "shared")
        learned = {"embedding_dim": dim, "leading_dim": dim, "theta_init": "random"}
        config = {**document["config"], **learned, "family_options": options}
        document = {**document, "config": config}
    if document["version"] > 1:
        return document, tensors
    settings = {"state_map": "affine", "state_map_solver": "gradient", "alignment_weight": 0.0}
    old, new = "state_maps.", "state_maps.hidden."
    return (
        {
            **document,
            "config": {**document["config"], **settings},
            "spec": {**document["spec"], "stages": []},
            "units": {"hidden": document["units"]},
        },
        {k.replace(old, new) if k.startswith(old) else k: v for k, v in tensors.items()},
    )


def _assemble(
    source: Path, document: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> ModelEmbedding:
    config = FitConfig.from_options(document["config"])
    spec = PopulationSpec(
        InputSpec(
            **{**document["spec"]["inputs"], "shape": tuple(document["spec"]["inputs"]["shape"])}
        ),
        tuple(
            OutputSpec(**{**output, "shape": tuple(output["shape"])})
            for output in document["spec"]["outputs"]
        ),
        tuple(
            StageSpec(stage["name"], stage["axis"], tuple(stage["positions"]))
            for stage in document["spec"]["stages"]
        ),
    )
    dim = tensors["thetas"].shape[1]
    family = get_registry().load("meta_model", config.family)
    with torch.random.fork_rng(devices=[]):  # the initial values are overwritten below
        meta_model = family(spec, embedding_dim=dim, **config.family_options)
        state_maps, common_maps = make_state_maps(config, meta_model.stage_units, document["units"])
    for prefix, module in (
        ("meta_model.", meta_model),
        ("state_maps.", state_maps),
        ("common_maps.", common_maps),
    ):
        if module is not None:
            module.load_state_dict(_under(prefix, tensors))
            module.requires_grad_(False).eval()  # noqa: FBT003
    ids = tuple(document["ids"])
    provenance = dict(document["provenance"])
    provenance["model_hashes"] = tuple(provenance["model_hashes"])
    relative = document["population_relative"]
    if relative is not None and (source / relative).exists():
        provenance["population"] = str((source / relative).resolve())
    provenance["others"] = tuple(
        str((source / near).resolve()) if near is not None and (source / near).exists() else place
        for place, near in zip(
            provenance.get("others", ()), document.get("others_relative", ()), strict=True
        )
    )
    return ModelEmbedding(
        thetas=tensors["thetas"],
        ids=ids,
        metadata=_frame_from_json(document["metadata"]).set_axis(pd.Index(ids, name="model")),
        meta_model=meta_model,
        state_maps=state_maps,
        common_maps=common_maps,
        output_groups=tuple(document["output_groups"]),
        history=_frame_from_json(document["history"]),
        config=config,
        training_samples=tensors["training_samples"],
        held_out_samples=tensors["held_out_samples"],
        stopped=document.get("stopped"),
        provenance=Provenance(**provenance),
    )


def _tensors_of(name: str, module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    state = {} if module is None else module.state_dict()
    return {f"{name}.{key}": value for key, value in state.items()}


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _frame_to_json(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns of plain values; what is missing is null."""
    columns = {}
    for name in frame.columns:
        values = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        columns[str(name)] = [v.item() if hasattr(v, "item") else v for v in values]
    return columns


def _frame_from_json(columns: dict[str, list[Any]]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def _relative(location: str, target: Path) -> str | None:
    """Return the path from the embedding to a local population; None for other places."""
    path = location.removeprefix("file://")
    if "://" in path or not Path(path).exists():
        return None
    return os.path.relpath(Path(path).resolve(), target.resolve())
