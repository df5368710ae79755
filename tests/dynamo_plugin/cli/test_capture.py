"""`dynamo-plugin capture` on a folder that somebody else might have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from dynamo_plugin.cli._app import app
from dynamo_plugin.store import open_population

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, units, layers=1):
        super().__init__()
        self.cell = nn.GRU(2, units, num_layers=layers, batch_first=True)
        self.head = nn.Linear(units, 3)

    def forward(self, x, lengths=None):
        return self.head(self.cell(x)[0][:, -1])


def make(units, layers=1):
    import {name}_sibling  # modules beside the file can be imported late, too
    return Net(units, layers)


def data(samples):
    generator = torch.Generator().manual_seed(0)
    return {{"inputs": torch.randn(samples, 4, 2, generator=generator),
            "targets": torch.arange(samples)}}


def wrong_data():
    return {{"values": 1}}
"""

CONFIG = """
store = "out/population.zarr"
batch_size = 2
[inputs]
file = "inputs.npy"
[metadata]
file = "runs.csv"
[[models]]
factory = "{name}:make"
arguments = {{ units = 5 }}
state_dict = "checkpoints/*.pt"
metadata = {{ origin = "folder" }}
[[models]]
id = "untrained"
factory = "{name}:make"
arguments = {{ units = 3, layers = 2 }}
output_group = "other"
"""


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A module, inputs, metadata and checkpoints; the module's name is unique per test."""
    name = f"foreign_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    (tmp_path / f"{name}_sibling.py").write_text("")
    (tmp_path / "name.txt").write_text(name)
    (tmp_path / "capture.toml").write_text(CONFIG.format(name=name))
    np.save(tmp_path / "inputs.npy", inputs())
    rows = "".join(f"run-{seed},{seed / 10}\n" for seed in range(3))
    (tmp_path / "runs.csv").write_text(f"model,rate\n{rows}untrained,\n")
    (tmp_path / "checkpoints").mkdir()
    for seed in range(3):
        torch.save(weights(seed), tmp_path / "checkpoints" / f"run-{seed}.pt")
    return tmp_path


def inputs() -> Any:
    return np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32)


def weights(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {"cell": nn.GRU(2, 5, batch_first=True), "head": nn.Linear(5, 3)}
        return dict(nn.ModuleDict(parts).state_dict())


def invoke(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["capture", str(folder / "capture.toml"), *arguments])


def rewrite(folder: Path, *changes: tuple[str, str]) -> None:
    path = folder / "capture.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text.replace("NAME", (folder / "name.txt").read_text()))


def assert_states(folder: Path, store: Path) -> None:
    population = open_population(store)
    for seed in range(3):
        module = nn.GRU(2, 5, batch_first=True)
        own = {k.removeprefix("cell."): v for k, v in weights(seed).items() if "cell" in k}
        module.load_state_dict(own)
        with torch.no_grad():
            expected = module(torch.from_numpy(inputs()))[0].flatten(0, 1)
        np.testing.assert_allclose(
            population.states(f"run-{seed}", "cell"), expected.numpy(), rtol=1e-5, atol=1e-6
        )


def test_a_folder_of_checkpoints_becomes_a_population(folder: Path) -> None:
    result = invoke(folder, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    store = folder / "out" / "population.zarr"
    population = open_population(store)
    assert summary.pop("seconds") > 0
    assert summary == {
        "store": str(store),
        "models": 4,
        "samples": 5,
        "rows": 20,
        "bytes": sum(population.nbytes(model_id) for model_id in population.ids),
    }
    assert "capture" in result.stderr
    assert population.ids == ("run-0", "run-1", "run-2", "untrained")
    assert population.metadata["rate"].tolist()[:3] == [0.0, 0.1, 0.2]
    assert population.metadata["origin"].tolist()[:3] == ["folder"] * 3
    assert population.sites("untrained") == ("cell.layer0", "cell.layer1")
    assert population.output_group("untrained") == "other"
    assert population.output_group("run-0") == "output3"
    assert_states(folder, store)


def test_options_take_the_place_of_the_file(folder: Path) -> None:
    other = folder / "elsewhere.zarr"
    result = invoke(folder, "--store", str(other), "--batch-size", "1", "--quiet")
    assert result.exit_code == 0, result.output
    assert "4 models, 5 samples, 20 steps" in result.stdout
    assert result.stderr == ""
    assert_states(folder, other)
    again = invoke(folder, "--store", str(other), "--quiet")
    assert again.exit_code == 1
    assert "resume" in again.stderr
    assert "Traceback" not in again.output
    # The untrained model is drawn anew, and so is not the one that was recorded.
    options = ("--store", str(other), "--quiet", "--resume")
    other_batches = invoke(folder, *options)  # which may change the last bits
    assert other_batches.exit_code == 1
    assert "batch_size" in other_batches.stderr
    changed = invoke(folder, *options, "--batch-size", "1")
    assert changed.exit_code == 1
    assert "model 'untrained'" in changed.stderr
    assert invoke(folder, "--store", str(other), "--quiet", "--overwrite").exit_code == 0


@pytest.mark.slow
def test_workers_record_the_same(folder: Path) -> None:
    text = (folder / "capture.toml").read_text()
    (folder / "capture.toml").write_text(text[: text.rindex("[[models]]")])
    (folder / "runs.csv").write_text("model,rate\nrun-0,0\nrun-1,0\nrun-2,0\n")
    one, two = folder / "one.zarr", folder / "two.zarr"
    assert invoke(folder, "--store", str(one), "--quiet").exit_code == 0
    result = invoke(folder, "--store", str(two), "--quiet", "--workers", "2")
    assert result.exit_code == 0, result.output
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_reductions_and_a_part_of_the_samples(folder: Path) -> None:
    table = '[reduce."cell*"]\nevery = 2\nproject = 3\nprojection = "pca"\n[metadata]'
    rewrite(
        folder,
        ("batch_size = 2", "batch_size = 2\nsamples = 3\nsample_seed = 5"),
        ("[metadata]", table),
    )
    assert invoke(folder, "--quiet").exit_code == 0
    population = open_population(folder / "out" / "population.zarr")
    assert population.states("run-1", "cell").shape == (3 * 2, 3)
    assert population.projection("untrained", "cell.layer1").matrix.shape == (3, 3)
    assert len(population.sample_ids) == 3
    rewrite(folder, ("every = 2", "every = 4"))
    again = invoke(folder, "--quiet", "--resume")
    assert again.exit_code == 1
    assert "'reduce'" in again.stderr
    rewrite(folder, ("every = 4", "evry = 4"))
    assert "no field 'evry'. Did you mean 'every'?" in invoke(folder, "--quiet").stderr
    rewrite(folder, ("evry = 4", ""), ("samples = 3", "samples = [3, 0]"), ("sample_seed = 5", ""))
    assert invoke(folder, "--quiet", "--overwrite").exit_code == 0
    ids = open_population(folder / "out" / "population.zarr").sample_ids
    assert ids == ("sample-3", "sample-0")


def test_inputs_from_a_factory(folder: Path) -> None:
    rewrite(
        folder,
        ('file = "inputs.npy"', 'factory = "NAME:data"\narguments = { samples = 3 }'),
    )
    assert invoke(folder, "--quiet").exit_code == 0
    stored = open_population(folder / "out" / "population.zarr").inputs
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(3, 4, 2, generator=generator).flatten(0, 1).numpy()
    np.testing.assert_array_equal(stored.values, expected)
    assert stored.targets is not None
    assert stored.targets.tolist() == [0, 1, 2]


def test_safetensors(folder: Path) -> None:
    tensors = {
        "x": torch.from_numpy(inputs()),
        "n": torch.tensor([4, 3, 2, 1, 4]),
        "y": torch.arange(5),
    }
    save_file(tensors, folder / "inputs.safetensors")
    for seed in range(3):
        path = folder / "checkpoints" / f"run-{seed}"
        path.with_suffix(".pt").unlink()
        save_file(weights(seed), path.with_suffix(".safetensors"))
    rewrite(
        folder,
        ("inputs.npy", "inputs.safetensors"),
        ("[metadata]", 'lengths_key = "n"\ntargets_key = "y"\n[metadata]'),
        ("*.pt", "*.safetensors"),
    )
    result = invoke(folder, "--quiet")
    assert result.exit_code == 0, result.output
    population = open_population(folder / "out" / "population.zarr")
    assert population.lengths.tolist() == [4, 3, 2, 1, 4]
    assert population.inputs.targets is not None
    assert population.inputs.targets.tolist() == [0, 1, 2, 3, 4]


def test_npy_with_lengths_and_json_metadata_and_nested_checkpoints(folder: Path) -> None:
    np.save(folder / "n.npy", np.array([1, 2, 3, 4, 4]))
    np.save(folder / "y.npy", np.arange(5) / 2)
    rows = {f"run-{seed}-x": {"rate": seed} for seed in range(3)} | {"untrained": {}}
    (folder / "runs.json").write_text(json.dumps(rows))
    for seed in range(3):
        nested = {"model": weights(seed), "epoch": 3}
        torch.save(nested, folder / "checkpoints" / f"run-{seed}.pt")
    rewrite(
        folder,
        ("runs.csv", "runs.json"),
        ('"inputs.npy"', '"inputs.npy"\nlengths_file = "n.npy"\ntargets_file = "y.npy"'),
        ('*.pt"', '*.pt"\nstate_dict_key = "model"\nid = "{stem}-x"'),
    )
    result = invoke(folder, "--quiet")
    assert result.exit_code == 0, result.output
    population = open_population(folder / "out" / "population.zarr")
    assert population.ids == ("run-0-x", "run-1-x", "run-2-x", "untrained")
    assert population.lengths.tolist() == [1, 2, 3, 4, 4]
    assert population.metadata.loc["run-2-x", "rate"] == 2


def test_parquet(folder: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    values = inputs()
    sequences = [values[row, : 1 + row % 4].tolist() for row in range(5)]
    pd.DataFrame({"x": sequences, "name": list("abcde"), "y": range(5)}).to_parquet(
        folder / "inputs.parquet"
    )
    rewrite(
        folder,
        ("inputs.npy", "inputs.parquet"),
        ("[metadata]", 'column = "x"\nid_column = "name"\ntarget_column = "y"\n[metadata]'),
    )
    result = invoke(folder, "--quiet")
    assert result.exit_code == 0, result.output
    population = open_population(folder / "out" / "population.zarr")
    assert population.sample_ids == tuple("abcde")
    assert population.lengths.tolist() == [1, 2, 3, 4, 1]
    np.testing.assert_allclose(population.inputs.values[1:3], values[1, :2], rtol=1e-6)
    assert population.inputs.targets is not None
    assert population.inputs.targets.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_size = 2", "batch_size = 0"), "batch_size: Input should be greater"),
        (("batch_size = 2", "batch_sise = 2"), "batch_sise: "),
        (("batch_size = 2", "batch_size = "), "is not valid TOML"),
        (('store = "out/population.zarr"', ""), "store: Field required"),
        (('id = "untrained"', ""), r"models[1]: expected id"),
        (('id = "untrained"', "id = 3"), r"models[1].id: "),
        (('id = "untrained"', 'id = "run-1"'), "models[1]: the id 'run-1' is taken"),
        (("*.pt", "*.pth"), "models[0].state_dict: no file matches"),
        (("*.pt", "run-9.pt"), "models[0].state_dict: there is no file"),
        (("*.pt", "*.txt"), "models[0]: expected a file of type .pt"),
        (("NAME:make", "NAME:maek"), "NAME:maek cannot be imported: AttributeError"),
        (("NAME:make", "no_such:make"), "ModuleNotFoundError"),
        (("NAME:make", "NAME.make"), "models[0].factory: "),
        (("NAME:make", "NAME:__name__"), "is a str; expected a function"),
        (("batch_size = 2", "samples = 0"), "samples: expected a positive number"),
        (("[metadata]", '[reduce."*"]\nevery = 0\n[metadata]'), "reduce: reduce['*']: every must"),
        (("inputs.npy", "other.npy"), "other.npy cannot be read"),
        (("inputs.npy", "inputs.csv"), "inputs: expected a file of type .npy"),
        (('file = "inputs.npy"', ""), "inputs: expected either file or factory"),
        (('file = "inputs.npy"', 'file = "inputs.npy"\nkey = "x"'), "key does not belong to"),
        (('file = "inputs.npy"', 'factory = "NAME:wrong_data"'), "mapping with values"),
        (('file = "inputs.npy"', 'file = "x.parquet"'), "needs column"),
        (("runs.csv", "runs.xls"), "metadata: expected a file of type .csv"),
        (("runs.csv", "other.csv"), "other.csv cannot be read"),
        (("units = 5", "units = 6"), "model 'run-0': "),
        (("units = 5", "width = 6"), "model 'run-0': TypeError"),
    ],
)
def test_faults_are_told_by_their_place(
    folder: Path, change: tuple[str, str], message: str
) -> None:
    name = (folder / "name.txt").read_text()
    old, new = (part.replace("NAME", name) for part in change)
    rewrite(folder, (old, new))
    result = invoke(folder, "--quiet")
    assert result.exit_code == 1, result.output
    assert message.replace("NAME", name) in result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_wrong_weights_name_the_keys(folder: Path) -> None:
    wrong = weights(0)
    wrong["tail.weight"] = wrong.pop("head.weight")
    torch.save(wrong, folder / "checkpoints" / "run-0.pt")
    result = invoke(folder, "--quiet")
    assert "does not fit Net; missing keys: head.weight; unexpected keys: tail.w" in result.stderr
    torch.save({"model": weights(0)}, folder / "checkpoints" / "run-0.pt")
    assert "Did you mean state_dict_key = 'model'?" in invoke(folder, "--overwrite").stderr
    rewrite(folder, ("units = 5", "units = 6"))
    torch.save(weights(0), folder / "checkpoints" / "run-0.pt")
    assert "cell.weight_ih_l0 has shape (15, 2) instead of (18, 2)" in (
        invoke(folder, "--overwrite").stderr
    )


def test_checkpoints_are_never_unpickled(folder: Path) -> None:
    torch.save(nn.GRU(2, 5), folder / "checkpoints" / "run-0.pt")
    result = invoke(folder, "--quiet")
    assert result.exit_code == 1
    assert "was not unpickled" in result.stderr
    (folder / "checkpoints" / "run-0.pt").write_bytes(b"nothing")
    result = invoke(folder, "--quiet", "--overwrite")
    assert result.exit_code == 1
    assert "run-0.pt" in result.stderr


def test_metadata_must_fit(folder: Path) -> None:
    (folder / "runs.csv").write_text("model,rate\nrun-0,1\n")
    result = invoke(folder, "--quiet")
    assert "metadata lacks 'run-1', 'run-2', 'untrained'" in result.stderr


def test_missing_file_and_wrong_usage(tmp_path: Path) -> None:
    result = invoke(tmp_path)
    assert result.exit_code == 1
    assert "cannot be read: No such file" in result.stderr
    assert CliRunner().invoke(app, ["capture"]).exit_code == 2


def test_help_says_that_code_is_run() -> None:
    result = CliRunner().invoke(app, ["capture", "--help"])
    assert result.exit_code == 0
    assert "runs its code" in " ".join(result.stdout.split())


def test_what_a_file_describes_can_be_fitted_without_a_store(folder: Path) -> None:
    text = (folder / "capture.toml").read_text()
    text = text[: text.rindex("[[models]]")]  # the others come from checkpoints, and stay the same
    (folder / "capture.toml").write_text(text)
    rows = (folder / "runs.csv").read_text()
    (folder / "runs.csv").write_text(rows[: rows.index("untrained")])
    file, embedding = str(folder / "capture.toml"), str(folder / "embedding")
    few = ("--steps", "2", "--embedding-dim", "2", "--quiet")
    fitted = CliRunner().invoke(app, ["fit", file, "--output", embedding, *few])
    assert fitted.exit_code == 0, fitted.output
    assert not (folder / "out").exists()
    command = ["analyse", "fidelity", embedding]
    nowhere = CliRunner().invoke(app, command)
    assert nowhere.exit_code == 1
    assert "population=" in nowhere.stderr
    found = CliRunner().invoke(app, [*command, "--population", file, "--json"])
    assert found.exit_code == 0, found.output
    table = json.loads(found.stdout)["table"]
    assert [row["model"] for row in table] == ["run-0", "run-1", "run-2"]
    (folder / "capture.toml").write_text(text + '[reduce."*"]\nevery = 2\n')
    refused = CliRunner().invoke(app, ["fit", file, "--output", embedding + "-2", *few])
    assert refused.exit_code == 1
    assert "Capture, or leave reduce out" in refused.stderr
