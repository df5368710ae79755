"""The adapter for transformers against its own hidden states, and against norms by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamo_hooks.huggingface import HuggingFaceAdapter
from dynamo_hooks.torch_layers import TorchLayersAdapter
from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
}
SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 20, **SPECIAL}
T5: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 3,
    "num_heads": 2,
    "vocab_size": 20,
}
VIT: dict[str, Any] = {**SIZES, "image_size": 8, "patch_size": 4}

# Class, configuration, and where its final norm is.
READERS: dict[str, tuple[str, str, dict[str, Any], str | None]] = {
    "bert": ("BertModel", "BertConfig", SIZES, None),
    "bert-classifier": ("BertForSequenceClassification", "BertConfig", SIZES, None),
    "bert-lm": ("BertForMaskedLM", "BertConfig", SIZES, None),
    "roberta": ("RobertaModel", "RobertaConfig", SIZES, None),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 20},
        None,
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, "transformer.ln_f"),
    "gpt2-classifier": (
        "GPT2ForSequenceClassification",
        "GPT2Config",
        {**GPT2, "pad_token_id": 19},
        "transformer.ln_f",
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZES, "model.norm"),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2},
        "model.norm",
    ),
    "t5-encoder": ("T5EncoderModel", "T5Config", T5, "encoder.final_layer_norm"),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 20, "state_size": 4, **SPECIAL},
        "backbone.norm_f",
    ),
    "xlnet": (  # its blocks take and return (time, sample, width)
        "XLNetModel",
        "XLNetConfig",
        {"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 32, "vocab_size": 20},
        None,
    ),
    "albert": ("AlbertModel", "AlbertConfig", {**SIZES, "embedding_size": 8}, None),
}


RWKV: dict[str, Any] = {
    "hidden_size": 16,
    "attention_hidden_size": 16,
    "num_hidden_layers": 3,
    "vocab_size": 20,
    **SPECIAL,
}
READERS["rwkv"] = ("RwkvForCausalLM", "RwkvConfig", RWKV, "rwkv.ln_out")
# Their `hidden_states` begin with what the first block returns, without the embeddings.
WITHOUT_EMBEDDINGS = ("mamba", "rwkv")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        torch.manual_seed(0)
        yield
    transformers.logging.set_verbosity(level)


def made(kind: str, config: str, options: dict[str, Any]) -> Any:
    model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    for name, parameter in model.named_parameters():  # norms that do nothing would hide much
        if "norm" in name.lower() or "ln_" in name:
            nn.init.normal_(parameter, 1.0, 0.2)
    return model


def reader(name: str) -> Any:
    return made(*READERS[name][:3])


def ids(lengths: list[int]) -> SequenceBatch:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randint(3, 19, (len(lengths), max(lengths)), generator=generator)
    counted = torch.tensor(lengths)
    values[torch.arange(max(lengths))[None, :] >= counted[:, None]] = 0
    return SequenceBatch(values, counted)


def images(samples: int, *shape: int) -> SequenceBatch:
    generator = torch.Generator().manual_seed(samples)
    values = torch.randn(samples, *shape, generator=generator)
    return SequenceBatch(values, torch.ones(samples, dtype=torch.int64), has_time=False)


def captured(
    model: nn.Module, batch: SequenceBatch, **options: Any
) -> tuple[TrajectorySpec, Trajectory]:
    adapter = HuggingFaceAdapter(**options)
    assert adapter.supports(model)
    spec = adapter.describe(model, batch)
    return spec, adapter.record(model, batch, spec)


def output_of(trajectory: Trajectory) -> Tensor:
    (output,) = trajectory.outputs.values()
    return output


def norm_by_hand(module: Any, x: Tensor) -> Tensor:
    """Layer norm and root-mean-square norm, written out."""
    if isinstance(module, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
        return scaled * module.weight + module.bias
    scale = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    normed: Tensor = module.weight * (x * scale)
    return normed


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_states_are_those_of_transformers_and_the_last_one_is_told_apart(name: str) -> None:
    model = reader(name)
    norm = READERS[name][3]
    batch = ids([5, 5, 5])
    spec, trajectory = captured(model, batch)
    sites = ["embeddings", "block0", "block1", "block2", *(["final_norm"] if norm else [])]
    assert [site.name for site in spec.sites] == sites == list(trajectory.states)
    assert {(site.shape, site.axis) for site in spec.sites} == {((16,), "time")}
    model.eval()
    result = model(batch.values, output_hidden_states=True)
    hidden = result.hidden_states
    assert len(hidden) == 4
    if name in WITHOUT_EMBEDDINGS:
        embeddings = model.get_input_embeddings()(batch.values)
        hidden = (embeddings, *hidden)
    for site, expected in zip(sites, hidden[:-1], strict=False):
        torch.testing.assert_close(trajectory.states[site], expected)
    last = trajectory.states["block2"]
    if norm is None:
        torch.testing.assert_close(last, hidden[-1])
    else:
        assert (last - hidden[-1]).abs().max() > 0.01
        by_hand = norm_by_hand(model.get_submodule(norm), last)
        torch.testing.assert_close(by_hand, hidden[-1])
        torch.testing.assert_close(trajectory.states["final_norm"], by_hand)
    expected = result["logits" if "logits" in result else "last_hidden_state"]
    torch.testing.assert_close(output_of(trajectory), expected)
    assert spec.output.axis == ("sample" if "classifier" in name else "time")


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_ragged_batches_give_what_each_sequence_gives_alone(name: str) -> None:
    model = reader(name)
    batch = ids([6, 4, 1])
    spec, trajectory = captured(model, batch)
    assert spec.options["ragged_batches"] is True
    model.eval()
    for row, length in enumerate([6, 4, 1]):
        result = model(batch.values[row : row + 1, :length], output_hidden_states=True)
        sites = ["embeddings", "block0", "block1", "block2"]
        sites = sites[1 if name in WITHOUT_EMBEDDINGS else 0 :]
        for site, expected in zip(sites, result.hidden_states[:-1], strict=False):
            state = trajectory.states[site][row : row + 1, :length]
            torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
        expected = result["logits" if "logits" in result else "last_hidden_state"]
        output = output_of(trajectory)[row : row + 1]
        if spec.output.axis == "time":
            output = output[:, :length]
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_padding_that_cannot_be_kept_out_is_noticed() -> None:
    """A forward without the mask lets BERT attend to padding."""
    batch = ids([6, 4])
    blind: Callable[..., Any] = lambda model, values, lengths: model(values)  # noqa: E731
    spec = HuggingFaceAdapter(forward=blind).describe(reader("bert"), batch)
    assert spec.options["ragged_batches"] is False
    spec = HuggingFaceAdapter(forward=blind).describe(reader("gpt2"), batch)
    assert spec.options["ragged_batches"] is True


@torch.no_grad()
def test_images() -> None:
    model = made("ViTForImageClassification", "ViTConfig", VIT)
    batch = images(3, 3, 8, 8)
    spec, trajectory = captured(model, batch)
    assert [site.name for site in spec.sites] == [
        "embeddings",
        "block0",
        "block1",
        "block2",
        "final_norm",
    ]
    assert {(site.shape, site.axis) for site in spec.sites} == {((5, 16), "sample")}
    model.eval()
    result = model(batch.values, output_hidden_states=True)
    assert len(result.hidden_states) == 4  # of ViT the last one is not normed
    for site, expected in zip(spec.sites, result.hidden_states, strict=False):
        torch.testing.assert_close(trajectory.states[site.name], expected)
    by_hand = norm_by_hand(model.vit.layernorm, trajectory.states["block2"])
    torch.testing.assert_close(trajectory.states["final_norm"], by_hand)
    torch.testing.assert_close(output_of(trajectory), result.logits)


@pytest.mark.parametrize("kind", ["resnet", "swin"])
@torch.no_grad()
def test_stages_of_networks_without_one_hidden_size(kind: str) -> None:
    if kind == "resnet":
        options: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        model = made("ResNetForImageClassification", "ResNetConfig", options)
    else:
        options = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "window_size": 2}
        options |= {"depths": [1, 1, 1], "num_heads": [2, 2, 2]}
        model = made("SwinForImageClassification", "SwinConfig", options)
    batch = images(3, 3, 16, 16)
    spec, trajectory = captured(model, batch)
    model.eval()
    hidden = model(batch.values, output_hidden_states=True).hidden_states
    sites = [site.name for site in spec.sites if site.name != "final_norm"]
    assert sites == ["embeddings", *(f"block{index}" for index in range(len(hidden) - 1))]
    for site, expected in zip(sites, hidden, strict=True):
        torch.testing.assert_close(trajectory.states[site], expected)


@torch.no_grad()
def test_vectors_per_step_are_embeddings() -> None:
    model = reader("llama")
    values = torch.randn(3, 5, 16)
    spec, trajectory = captured(model, SequenceBatch(values, torch.tensor([5, 5, 5])))
    torch.testing.assert_close(trajectory.states["embeddings"], values)
    model.eval()
    torch.testing.assert_close(output_of(trajectory), model(inputs_embeds=values).logits)
    assert spec.options["ragged_batches"] is True


def test_the_input_of_the_first_block_may_arrive_by_keyword() -> None:
    model = reader("bert")
    block = model.encoder.layer[0]
    call = type(block).__call__

    class ByKeyword(type(block)):  # type: ignore[misc]
        def __call__(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
            noise = torch.zeros(len(hidden_states), 5, 16)
            return call(self, noise=noise, hidden_states=hidden_states, **options)

    block.__class__ = ByKeyword
    batch = ids([5, 5])
    _, trajectory = captured(model, batch)
    model.eval()
    with torch.no_grad():
        expected = model.embeddings(batch.values)
    torch.testing.assert_close(trajectory.states["embeddings"], expected)


def test_no_cache_is_asked_for() -> None:
    model = reader("gpt2")
    asked: list[Any] = []
    model.register_forward_pre_hook(
        lambda module, arguments, keywords: asked.append(keywords["use_cache"]), with_kwargs=True
    )
    captured(model, ids([5, 3]))
    assert asked
    assert set(asked) == {False}


def test_what_is_named_like_a_norm_and_is_none() -> None:
    model = made("RobertaPreLayerNormModel", "RobertaPreLayerNormConfig", SIZES)
    spec, _ = captured(model, ids([5]))
    assert spec.sites[-1].name == "final_norm"
    model.LayerNorm = nn.Identity()
    assert "Norm" in type(model.pooler).__name__  # and it receives the last block's states
    spec, _ = captured(model, ids([5]))
    assert spec.sites[-1].name == "block2"


def test_layers_take_the_place_of_the_default_sites() -> None:
    model = reader("bert")
    batch = ids([5, 3])
    spec, trajectory = captured(
        model, batch, layers={"encoder.layer.*": None, "encoder.layer.*.attention.self": 0}
    )
    assert [site.name for site in spec.sites] == [
        name
        for index in range(3)
        for name in (f"encoder.layer.{index}.attention.self", f"encoder.layer.{index}")
    ]
    _, default = captured(model, batch)
    for index in range(3):
        state = trajectory.states[f"encoder.layer.{index}"]
        torch.testing.assert_close(state, default.states[f"block{index}"])
    with pytest.raises(UnknownName, match="'block0' matches no module"):
        captured(model, batch, layers=["block0"])


def test_places_say_which_modules_were_read() -> None:
    spec, _ = captured(reader("gpt2"), ids([4]))
    places: Any = spec.options["places"]
    paths = [place["path"] for place in places.values()]
    blocks = [f"transformer.h.{index}" for index in range(3)]
    assert paths == [blocks[0], *blocks, "transformer.ln_f"]
    assert [place["side"] for place in places.values()] == ["input", *["output"] * 4]
    shared, _ = captured(reader("albert"), ids([4]))
    places = shared.options["places"]
    assert [places[f"block{index}"]["call"] for index in range(3)] == [0, 1, 2]


def test_outputs() -> None:
    batch = ids([5, 5])
    spec, trajectory = captured(reader("bert"), batch, output="pooler_output")
    assert (spec.output.axis, spec.output.shape) == ("sample", (16,))
    model = made("BertForQuestionAnswering", "BertConfig", SIZES)
    with pytest.raises(CaptureError, match=r"keys start_logits, end_logits.*output="):
        captured(model, batch)
    spec, trajectory = captured(model, batch, output="start_logits")
    assert (spec.output.axis, spec.output.shape) == ("time", (1,))
    model.eval()
    with torch.no_grad():
        expected = model(batch.values).end_logits
    _, trajectory = captured(model, batch, output="end_logits")
    torch.testing.assert_close(output_of(trajectory)[..., 0], expected)
    tuples = made("BertModel", "BertConfig", {**SIZES, "return_dict": False})
    spec, _ = captured(tuples, batch)
    assert (spec.output.axis, spec.output.shape) == ("time", (16,))


def test_encoder_decoders() -> None:
    model = made("T5ForConditionalGeneration", "T5Config", {**T5, "decoder_start_token_id": 0})
    batch = ids([5, 5])
    with pytest.raises(UnsupportedModel, match=r"encoder-decoder.*get_encoder\(\)"):
        captured(model, batch)
    spec, trajectory = captured(model.get_encoder(), batch)
    assert [site.name for site in spec.sites][-1] == "final_norm"
    torch.testing.assert_close(output_of(trajectory), trajectory.states["final_norm"])

    def both(model: Any, values: Tensor, lengths: Tensor) -> Any:
        return model(input_ids=values, decoder_input_ids=values)

    with pytest.raises(CaptureError, match=r"several stacks .*'decoder.block'.*'encoder.block'"):
        captured(model, batch, forward=both)
    spec, _ = captured(model, batch, forward=both, layers=["decoder.block.*"])
    assert [site.name for site in spec.sites] == [f"decoder.block.{index}" for index in range(3)]


def test_wrong_inputs_and_calls() -> None:
    with pytest.raises(InvalidInput, match=r"BertModel takes sequences.*\(3, 8, 8\)"):
        captured(reader("bert"), images(2, 3, 8, 8))
    with pytest.raises(InvalidInput, match="takes images"):
        captured(made("ViTModel", "ViTConfig", VIT), ids([4, 4]))
    unpadded = made("GPT2ForSequenceClassification", "GPT2Config", GPT2)
    with pytest.raises(CaptureError, match=r"no padding token .*called with input_ids of shape"):
        captured(unpadded, ids([4, 4]))
    narrow = SequenceBatch(torch.randn(2, 4, 3), torch.tensor([4, 4]))
    with pytest.raises(CaptureError, match="inputs_embeds of shape"):
        captured(reader("gpt2"), narrow)
    adapter = HuggingFaceAdapter()
    assert not adapter.supports(nn.Linear(2, 3))
    assert not adapter.supports("bert")
    with pytest.raises(UnsupportedModel, match=r"got Linear.*torch_layers"):
        adapter.describe(nn.Linear(2, 3), ids([4]))

    class PreTrainedModel(nn.Module):
        """Somebody else's class of that name."""

    assert not adapter.supports(PreTrainedModel())


@torch.no_grad()
def test_half_precision_and_wrappers() -> None:
    model = reader("llama").to(torch.bfloat16)
    batch = ids([5, 5])
    spec, trajectory = captured(nn.DataParallel(model), batch)
    assert {site.source_dtype for site in spec.sites} == {"bfloat16"}
    model.eval()
    hidden = model(batch.values, output_hidden_states=True).hidden_states
    for site, expected in zip(spec.sites, hidden[:-1], strict=False):
        assert torch.equal(trajectory.states[site.name], expected.float())


def snapshot(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        {name: value.tolist() for name, value in model.state_dict().items()},
        torch.random.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["bert", "rwkv"])
def test_model_is_left_as_it_was_found(name: str, training: bool) -> None:
    """RWKV halves weights of every second block when it runs in evaluation mode."""
    if name == "rwkv":
        options = {**RWKV, "num_hidden_layers": 4, "rescale_every": 2}
        model = made("RwkvForCausalLM", "RwkvConfig", options)
    else:
        model = reader(name)
    model.train(training)
    model.base_model.get_input_embeddings().weight.requires_grad_(False)
    before = snapshot(model)
    batch = ids([5, 3])
    adapter = HuggingFaceAdapter()
    spec = adapter.describe(model, batch)
    adapter.record(model, batch, spec)
    assert snapshot(model) == before
    fuse = model.get_submodule(spec.options["places"]["block2"]["path"]).register_forward_hook(  # type: ignore[index,call-overload]
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        adapter.record(model, batch, spec)
    fuse.remove()
    assert snapshot(model) == before


@torch.no_grad()
def test_the_final_norm_is_found_behind_halved_states() -> None:
    options = {**RWKV, "num_hidden_layers": 4, "rescale_every": 2}
    model = made("RwkvForCausalLM", "RwkvConfig", options)
    batch = ids([5, 5])
    spec, trajectory = captured(model, batch)
    assert [site.name for site in spec.sites][-1] == "final_norm"
    model.eval()
    hidden = model(batch.values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(trajectory.states["final_norm"], hidden[-1])
    torch.testing.assert_close(trajectory.states["block1"] / 2, hidden[1])
    torch.testing.assert_close(trajectory.states["block2"], hidden[2])


def test_other_adapters_leave_these_models_alone() -> None:
    assert not TorchLayersAdapter().supports(reader("bert"))
