"""The TransformerLens adapter against plain transformers, plain torch and `run_with_cache`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformer_lens import HookedRootModule, TransformerBridge
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

import dynamo_plugin
from dynamo_hooks.transformer_lens import TransformerLensAdapter
from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

VOCABULARY, WIDTH, HEADS, LAYERS = 11, 8, 2, 2
RESIDUAL = [
    "blocks.0.hook_resid_pre",
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_post",
    "ln_final.hook_out",
]


def tiny(seed: int = 0) -> GPT2LMHeadModel:
    """A randomly initialised GPT-2, with dropout, in evaluation mode."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = GPT2LMHeadModel(config)
        for parameter in network.parameters():  # biases and gains that a test would notice
            parameter.data += 0.3 * torch.randn_like(parameter)
    network.train(mode=False)
    return network


def bridged(network: GPT2LMHeadModel) -> TransformerBridge:
    bridge: TransformerBridge = build_bridge_from_module(
        network, "GPT2LMHeadModel", hf_config=network.config
    )
    return bridge


@pytest.fixture(scope="module")
def plain() -> GPT2LMHeadModel:
    return tiny()


@pytest.fixture(scope="module")
def shared_bridge() -> TransformerBridge:
    return bridged(tiny())


def ids_of(lengths: list[int], seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    counted = torch.tensor(lengths)
    ids[torch.arange(max(lengths))[None, :] >= counted[:, None]] = 0
    return SequenceBatch(ids, counted)


def arrays(*shape: int) -> SequenceBatch:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return SequenceBatch(values, torch.ones(shape[0], dtype=torch.int64), has_time=False)


def sequences(*shape: int) -> SequenceBatch:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return SequenceBatch(values, torch.full((shape[0],), shape[1]))


def captured(
    model: object, batch: SequenceBatch, **options: Any
) -> tuple[TrajectorySpec, Trajectory]:
    adapter = TransformerLensAdapter(**options)
    assert adapter.supports(model)
    spec = adapter.describe(model, batch)
    return spec, adapter.record(model, batch, spec)


def reference_stream(network: GPT2LMHeadModel, ids: Tensor) -> list[Tensor]:
    """The residual stream of one sequence (time,), written out; and the logits."""
    body: Any = network.transformer
    with torch.no_grad():
        x = body.wte.weight[ids] + body.wpe.weight[: len(ids)]
        stream = [x]
        for block in body.h:
            q, k, v = (
                (layer_norm(block.ln_1, x) @ block.attn.c_attn.weight + block.attn.c_attn.bias)
                .reshape(len(ids), 3, HEADS, WIDTH // HEADS)
                .unbind(1)
            )
            scores = torch.einsum("ihd,jhd->hij", q, k) / (WIDTH // HEADS) ** 0.5
            scores.masked_fill_(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
            mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
            x = x + mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias
            inner = layer_norm(block.ln_2, x) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
            inner = nn.functional.gelu(inner, approximate="tanh")
            x = x + inner @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
            stream.append(x)
        final = layer_norm(body.ln_f, x)
        logits = final @ body.wte.weight.T
        return [*stream, final, logits]


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


@settings(deadline=None, max_examples=12)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_residual_stream_is_recorded_by_default(
    plain: GPT2LMHeadModel, shared_bridge: TransformerBridge, lengths: list[int], seed: int
) -> None:
    batch = ids_of(sorted(lengths, reverse=True), seed)
    adapter = TransformerLensAdapter()
    spec = adapter.describe(shared_bridge, batch)
    assert [(site.name, site.shape, site.axis) for site in spec.sites] == [
        (name, (WIDTH,), "time") for name in RESIDUAL
    ]
    assert (spec.output.shape, spec.output.axis) == ((VOCABULARY,), "time")
    assert spec.options["ragged_batches"] is (max(lengths) > 1)
    trajectory = adapter.record(shared_bridge, batch, spec)
    assert list(trajectory.states) == RESIDUAL
    for row, length in enumerate(batch.lengths.tolist()):
        *stream, logits = reference_stream(plain, batch.values[row, :length])
        for name, expected in zip(RESIDUAL, stream, strict=True):
            torch.testing.assert_close(
                trajectory.states[name][row, :length], expected, rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(
            trajectory.outputs["output11-per-step"][row, :length], logits, rtol=1e-4, atol=1e-4
        )


def test_hooks_per_head_keep_their_axes(
    plain: GPT2LMHeadModel, shared_bridge: TransformerBridge
) -> None:
    batch = ids_of([5, 5, 5])
    layers = ["blocks.*.attn.hook_[qkv]", "blocks.0.attn.hook_z", "blocks.1.ln1.hook_scale"]
    spec, trajectory = captured(shared_bridge, batch, layers=layers)
    sizes = {site.name: (site.shape, site.axis) for site in spec.sites}
    assert len(sizes) == 8
    assert sizes["blocks.1.attn.hook_k"] == ((HEADS, WIDTH // HEADS), "time")
    assert sizes["blocks.1.ln1.hook_scale"] == ((1,), "time")
    _, cache = shared_bridge.run_with_cache(batch.values)
    for name, state in trajectory.states.items():
        torch.testing.assert_close(state, cache[name].detach().reshape(state.shape))
    block: Any = plain.transformer.h[0]
    for row in range(3):
        x = reference_stream(plain, batch.values[row])[0]
        qkv = layer_norm(block.ln_1, x) @ block.attn.c_attn.weight + block.attn.c_attn.bias
        expected = qkv[:, :WIDTH].reshape(5, HEADS, WIDTH // HEADS).detach()
        torch.testing.assert_close(trajectory.states["blocks.0.attn.hook_q"][row], expected)


def test_compatibility_mode_is_read_as_it_computes() -> None:
    bridge = bridged(tiny())
    bridge.enable_compatibility_mode()
    batch = ids_of([6, 4])
    spec, trajectory = captured(bridge, batch, layers=["blocks.*.hook_resid_post", "ln_final.*"])
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(batch.values)
    torch.testing.assert_close(trajectory.outputs[spec.output.group][1, :4], logits[1, :4])
    for name, state in trajectory.states.items():
        torch.testing.assert_close(state[1, :4], cache[name][1, :4].reshape(state[1, :4].shape))


def test_one_hook_point_is_one_site_under_the_name_that_was_asked_for(
    shared_bridge: TransformerBridge,
) -> None:
    batch = ids_of([3, 3])

    def names(*layers: str) -> list[str]:
        spec = TransformerLensAdapter(layers=layers).describe(shared_bridge, batch)
        return [site.name for site in spec.sites]

    assert names("blocks.0.hook_out") == ["blocks.0.hook_out"]
    assert names("blocks.0.hook_resid_post") == ["blocks.0.hook_resid_post"]
    assert names("blocks.0.hook_[ro]*t") == ["blocks.0.hook_resid_post"]
    assert names("blocks.0.hook_out", "blocks.?.hook_*out") == [
        "blocks.0.hook_attn_out",
        "blocks.0.hook_mlp_out",
        "blocks.0.hook_out",
        "blocks.1.hook_attn_out",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_out",
    ]


def test_attention_patterns_are_refused_with_what_can_be_stored(
    shared_bridge: TransformerBridge,
) -> None:
    with pytest.raises(CaptureError) as caught:
        captured(shared_bridge, ids_of([5, 5]), layers=["blocks.0.attn.hook_pattern"])
    assert "'blocks.0.attn.hook_pattern'" in str(caught.value)
    assert "two axes follow time" in str(caught.value)
    offered = str(caught.value).split("can be stored: ")[1]
    assert "blocks.*.hook_resid_post" in offered
    assert "blocks.*.attn.hook_q" in offered
    assert "hook_pattern" not in offered
    with pytest.raises(CaptureError, match=r"'pos_embed.hook_in'.*one axis of samples"):
        captured(shared_bridge, ids_of([5, 5]), layers=["pos_embed.hook_in"])


def test_silent_and_unknown_hooks_are_named(shared_bridge: TransformerBridge) -> None:
    batch = ids_of([3, 3])
    with pytest.raises(CaptureError, match=r"'blocks.0.attn.hook_result' did not fire.*setting"):
        captured(shared_bridge, batch, layers=["blocks.0.attn.hook_result"])
    with pytest.raises(UnknownName, match=r"Did you mean 'blocks.0.hook_resid_post'"):
        captured(shared_bridge, batch, layers=["blocks.0.hook_resid_pst"])
    with pytest.raises(
        UnknownName, match=r"'blocks.\*.hook_resid_past'.*blocks.\*.hook_resid_post"
    ):
        captured(shared_bridge, batch, layers=["blocks.*.hook_resid_past"])
    with pytest.raises(InvalidInput, match="sequence of at least one pattern"):
        TransformerLensAdapter(layers="hook_embed")


def test_hooks_that_a_setting_switches_on_are_read() -> None:
    bridge = bridged(tiny())
    bridge.set_use_attn_result(True)
    spec, trajectory = captured(bridge, ids_of([4, 4]), layers=["blocks.0.attn.hook_result"])
    assert spec.sites[0].shape == (HEADS, WIDTH)
    summed = trajectory.states["blocks.0.attn.hook_result"].sum(-2)
    _, cache = bridge.run_with_cache(ids_of([4, 4]).values)
    bias = bridge.original_model.transformer.h[0].attn.c_proj.bias
    torch.testing.assert_close(summed + bias.detach(), cache["blocks.0.hook_attn_out"].detach())


class Mixer(HookedRootModule):
    """Somebody's own hooked network; not causal: every step sees the mean of all."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)
        self.dropout = nn.Dropout(0.5)
        self.hook_inner, self.hook_mean = HookPoint(), HookPoint()
        self.causal = causal
        self.setup()  # type: ignore[no-untyped-call]

    def forward(self, values: Tensor) -> Tensor:
        inner = self.hook_inner(self.dropout(self.inner(values).tanh()))
        if self.causal:
            counted = torch.arange(1, values.shape[1] + 1)[:, None]
            mean = self.hook_mean(inner.cumsum(1) / counted)
        else:
            mean = self.hook_mean(inner.mean(1))[:, None]
        result: Tensor = self.outer(inner + mean)
        return result


def test_own_hooked_networks_are_read() -> None:
    model = Mixer()
    batch = sequences(3, 3, 3)
    spec, trajectory = captured(model, batch, layers=["hook_*"])
    assert [(site.name, site.shape, site.axis) for site in spec.sites] == [
        ("hook_inner", (4,), "time"),
        ("hook_mean", (4,), "sample"),
    ]
    with torch.no_grad():
        inner = (batch.values @ model.inner.weight.T + model.inner.bias).tanh()
        output = (inner + inner.mean(1, keepdim=True)) @ model.outer.weight.T + model.outer.bias
    torch.testing.assert_close(trajectory.states["hook_inner"], inner)
    torch.testing.assert_close(trajectory.states["hook_mean"], inner.mean(1))
    torch.testing.assert_close(trajectory.outputs["output2-per-step"], output)
    cached = model.eval().run_with_cache(batch.values)[1]
    torch.testing.assert_close(trajectory.states["hook_inner"], cached["hook_inner"])


def test_sequences_share_a_batch_only_where_padding_changes_nothing() -> None:
    batch = SequenceBatch(sequences(2, 5, 3).values, torch.tensor([5, 2]))
    adapter = TransformerLensAdapter(layers=["hook_*"])
    assert adapter.describe(Mixer(causal=True), batch).options["ragged_batches"] is True
    blind = Mixer()
    spec = adapter.describe(blind, batch)
    assert spec.options["ragged_batches"] is False
    with pytest.raises(CaptureError, match="Mixer cannot tell padding from data"):
        adapter.record(blind, batch, spec)


def test_attention_masks_are_passed_where_there_is_padding() -> None:
    class Masked(Mixer):
        seen: Tensor | None = None

        def forward(self, values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            self.seen = attention_mask
            if attention_mask is None:
                attention_mask = torch.ones(values.shape[:2])
            weights = attention_mask / attention_mask.sum(1, keepdim=True)
            inner = self.hook_inner(self.inner(values))
            mean = self.hook_mean(torch.einsum("st,stu->su", weights, inner))
            result: Tensor = self.outer(inner + mean[:, None])
            return result

    model = Masked()
    batch = SequenceBatch(sequences(2, 5, 3).values, torch.tensor([5, 2]))
    spec, trajectory = captured(model, batch, layers=["hook_*"])
    assert spec.options["ragged_batches"] is True
    assert model.seen is not None
    assert model.seen.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    with torch.no_grad():
        expected = (batch.values[1, :2] @ model.inner.weight.T + model.inner.bias).mean(0)
    torch.testing.assert_close(trajectory.states["hook_mean"][1], expected)


def test_inputs_without_time() -> None:
    class Convolved(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 5, 3, padding=1)
            self.hook_stem, self.hook_pooled = HookPoint(), HookPoint()
            self.setup()  # type: ignore[no-untyped-call]

        def forward(self, images: Tensor) -> Tensor:
            stem = self.hook_stem(self.stem(images).relu())
            pooled: Tensor = self.hook_pooled(stem.mean((-1, -2)))
            return pooled

    model = Convolved()
    batch = arrays(4, 3, 6, 6)
    spec, trajectory = captured(model, batch, layers=["hook_*"])
    assert [(site.shape, site.axis) for site in spec.sites] == [
        ((5, 6, 6), "sample"),
        ((5,), "sample"),
    ]
    assert spec.options["ragged_batches"] is False
    expected = model.stem(batch.values).relu().detach()
    torch.testing.assert_close(trajectory.states["hook_stem"], expected)
    torch.testing.assert_close(trajectory.outputs["output5"], expected.mean((-1, -2)))


def test_networks_without_residual_stream_say_what_to_choose() -> None:
    with pytest.raises(InvalidInput, match=r"Mixer has no residual stream.*hook_inner, hook_mean"):
        TransformerLensAdapter().describe(Mixer(), sequences(2, 4, 3))


def test_networks_without_residual_stream_are_left_to_other_adapters() -> None:
    class Recurrent(Mixer):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 3, batch_first=True)

        def forward(self, values: Tensor) -> Tensor:
            return super().forward(self.gru(values)[0])

    assert not TransformerLensAdapter().supports(Mixer())
    assert TransformerLensAdapter(layers=["hook_*"]).supports(Mixer())
    assert type(AdapterChoice().of(Recurrent())).__name__ == "TorchRecurrentAdapter"
    options = {"layers": ["hook_*"]}
    assert isinstance(AdapterChoice(options=options).of(Mixer()), TransformerLensAdapter)
    named = AdapterChoice("transformer_lens", options)
    assert isinstance(named.of(Recurrent()), TransformerLensAdapter)


def test_hooks_that_fire_twice_are_named() -> None:
    class Twice(Mixer):
        def forward(self, values: Tensor) -> Tensor:
            return super().forward(values) + super().forward(values)

    with pytest.raises(CaptureError, match="'hook_inner' fired 2 times"):
        captured(Twice(), sequences(2, 4, 3), layers=["hook_*"])


class TimeFirst(Mixer):
    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.hook_inner(self.inner(values)).cumsum(0)
        return result


@pytest.mark.parametrize("samples", [1, 4, 5])
def test_own_hooked_networks_may_take_time_first(samples: int) -> None:
    batch = sequences(samples, 4, 3)
    model = TimeFirst()
    spec, trajectory = captured(model, batch, layers=["hook_inner"])
    assert spec.options["time_first"] is True
    assert (spec.sites[0].axis, spec.output.axis) == ("time", "time")
    inner = model.inner(batch.values).detach()
    torch.testing.assert_close(trajectory.states["hook_inner"], inner)
    torch.testing.assert_close(trajectory.outputs["output4-per-step"], inner.cumsum(1))


def test_models_that_mix_samples_are_refused() -> None:
    class Centred(Mixer):
        def forward(self, values: Tensor) -> Tensor:
            inner = self.inner(values)
            result: Tensor = self.hook_inner(inner - inner.mean((0, 1)))
            return result

    with pytest.raises(CaptureError, match=r"depends on the other samples.*transpose"):
        captured(Centred(), sequences(3, 4, 3), layers=["hook_inner"])


def test_models_that_are_no_function_of_their_inputs_are_refused() -> None:
    class Counting(Mixer):
        calls = 0

        def forward(self, values: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(values) + self.calls

    with pytest.raises(CaptureError, match="the output differs between two runs"):
        captured(Counting(), sequences(2, 4, 3), layers=["hook_*"])


def test_states_are_copies_in_a_dtype_that_numpy_knows() -> None:
    class Reusing(Mixer):
        def forward(self, values: Tensor) -> Tensor:
            inner = self.hook_inner(self.inner(values))
            codes = self.hook_mean((inner > 0).to(torch.int8))
            result: Tensor = inner * 2 + codes
            inner.zero_()
            return result

    model = Reusing().to(torch.bfloat16)
    batch = sequences(2, 4, 3)
    spec, trajectory = captured(model, batch, layers=["hook_*"])
    assert [(site.dtype, site.source_dtype) for site in spec.sites] == [
        ("float32", "bfloat16"),
        ("float32", "int8"),
    ]
    inner = model.inner(batch.values.to(torch.bfloat16)).detach()
    torch.testing.assert_close(trajectory.states["hook_inner"], inner.float())
    torch.testing.assert_close(trajectory.states["hook_mean"], (inner > 0).float())


class OldHookPoint(nn.Module):
    """As in releases before handles were returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fwd_hooks: list[Any] = []

    def add_hook(self, hook: Callable[..., Any], dir: str = "fwd") -> None:  # noqa: A002
        assert dir == "fwd"
        self.fwd_hooks.append(
            self.register_forward_hook(lambda module, _, value: hook(value, hook=module))
        )

    def forward(self, value: Tensor) -> Tensor:
        return value


class OldTransformer(nn.Module):
    """Recognised by what it can do: it knows nothing of TransformerLens 4."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        names = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
        self.hook_dict = {name: OldHookPoint() for name in names}

    @contextmanager
    def hooks(self, fwd_hooks: list[Any]) -> Iterator[OldTransformer]:
        yield self

    def forward(self, input: Tensor, return_type: str = "loss") -> Tensor:  # noqa: A002
        x = self.hook_dict["blocks.0.hook_resid_pre"](self.embed(input))
        x = self.hook_dict["blocks.0.hook_resid_post"](x + x.cumsum(1))
        result: Tensor = x if return_type == "logits" else x.mean()
        return result


def test_models_of_earlier_releases_are_read() -> None:
    model = OldTransformer()
    batch = ids_of([4, 2])
    spec, trajectory = captured(model, batch)
    assert [site.name for site in spec.sites] == list(model.hook_dict)
    embedded = model.embed.weight[batch.values].detach()
    torch.testing.assert_close(trajectory.states["blocks.0.hook_resid_pre"], embedded)
    torch.testing.assert_close(
        trajectory.outputs["output4-per-step"], embedded + embedded.cumsum(1)
    )
    assert all(point.fwd_hooks == [] for point in model.hook_dict.values())
    assert all(not point._forward_hooks for point in model.hook_dict.values())


def test_wrong_calls_say_how_the_model_was_called() -> None:
    with pytest.raises(CaptureError, match=r"model\(values, return_type='logits'\) with.*forward="):
        captured(OldTransformer(), sequences(2, 4, 3))
    with pytest.raises(CaptureError, match=r"model\(values\) with"):
        captured(Mixer(), sequences(2, 4, 5), layers=["hook_*"])


def snapshot(model: nn.Module) -> list[Any]:
    inner = getattr(model, "original_model", model)
    modules = [*model.modules(), *inner.modules()]
    return [
        [module.training for module in modules],
        [
            list(map(id, table.values()))
            for module in modules
            for table in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ],
        [list(map(id, m.fwd_hooks + m.bwd_hooks)) for m in modules if isinstance(m, HookPoint)],
        [dict(m.ctx) for m in modules if isinstance(m, HookPoint)],
        [(p.requires_grad, p.data_ptr(), p.grad is None, p.tolist()) for p in inner.parameters()],
        torch.random.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        getattr(model, "context_level", None),
        getattr(model, "is_caching", None),
    ]


def hooked() -> tuple[TransformerBridge, Mixer]:
    """A bridge and an own network, half frozen, with hooks of every kind."""
    models = bridged(tiny()), Mixer(causal=True)
    models[0](torch.zeros(1, 2, dtype=torch.int64))  # a bridge adds hooks of its own when it runs
    for model, name in zip(models, ("blocks.0.hook_out", "hook_inner"), strict=True):
        model.train()
        model.add_hook(name, lambda value, hook: value * 2, is_permanent=True)
        model.add_hook(name, lambda value, hook: value + 1)
        with model.hooks(fwd_hooks=[(name, lambda value, hook: value * 3)], reset_hooks_end=False):
            pass  # leaves a hook at the level of the next context
        model.add_hook(name, lambda gradient, hook: None, dir="bwd")
        model.hook_dict[name].ctx["mine"] = 1
    models[0].original_model.transformer.drop.eval()
    models[0].original_model.transformer.wte.requires_grad_(False)
    models[1].inner.eval()
    return models


def test_hooks_of_the_users_survive_and_are_in_effect() -> None:
    bridge, own = hooked()
    before = snapshot(bridge), snapshot(own)
    ids, values = ids_of([4, 4]), sequences(2, 4, 3)
    _, of_bridge = captured(bridge, ids)
    _, of_own = captured(own, values, layers=["hook_*"])
    for now, then in zip((snapshot(bridge), snapshot(own)), before, strict=True):
        assert now == then
    untouched = reference_stream(tiny(), ids.values[0])[1]
    torch.testing.assert_close(
        of_bridge.states["blocks.0.hook_resid_post"][0],
        (untouched * 2 + 1) * 3,
        rtol=1e-4,
        atol=1e-4,
    )
    inner = own.inner(values.values).tanh().detach()
    torch.testing.assert_close(of_own.states["hook_inner"], (inner * 2 + 1) * 3)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_models_are_left_as_they_were_found_after_exceptions(error: BaseException) -> None:
    expected = CaptureError if isinstance(error, Exception) else KeyboardInterrupt
    cases: list[tuple[nn.Module, SequenceBatch, str]] = list(
        zip(hooked(), (ids_of([4, 4]), sequences(2, 4, 3)), ("ln_final", "outer"), strict=True)
    )
    for model, batch, last in cases:
        adapter = TransformerLensAdapter(
            layers=["hook_inner"] if isinstance(model, Mixer) else ["blocks.*.hook_resid_post"]
        )
        spec = adapter.describe(model, batch)
        before = snapshot(model)
        module = model.get_submodule(last)
        fuse = module.register_forward_hook(lambda *_: (_ for _ in ()).throw(error))
        for run in (
            lambda: adapter.describe(model, batch),  # noqa: B023
            lambda: adapter.record(model, batch, spec),  # noqa: B023
        ):
            with pytest.raises(expected):
                run()
        fuse.remove()
        assert snapshot(model) == before


def test_dropout_is_off_while_a_bridge_is_read() -> None:
    bridge = bridged(tiny())
    bridge.train()
    assert bridge.original_model.transformer.drop.training
    batch = ids_of([5, 5])
    _, trajectory = captured(bridge, batch)
    expected = reference_stream(tiny(), batch.values[1])[2]
    torch.testing.assert_close(trajectory.states[RESIDUAL[2]][1], expected, rtol=1e-4, atol=1e-5)


def test_fingerprints_follow_the_weights() -> None:
    adapter = TransformerLensAdapter()
    bridge = bridged(tiny())
    first = adapter.fingerprint(bridge)
    assert first == adapter.fingerprint(bridged(tiny()))
    bridge.original_model.transformer.ln_f.weight.data[0] += 1
    assert adapter.fingerprint(bridge) != first


def test_unsupported_models() -> None:
    class NotSetUp(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.hook = HookPoint()

    adapter = TransformerLensAdapter()
    for model in (nn.Linear(2, 3), NotSetUp(), "gpt2", None):
        assert not adapter.supports(model)
    with pytest.raises(UnsupportedModel, match=r"self.setup\(\); got NotSetUp"):
        adapter.describe(NotSetUp(), sequences(2, 3, 2))


def test_a_model_that_changed_since_it_was_described_is_refused() -> None:
    adapter = TransformerLensAdapter(layers=["hook_*"])
    batch = sequences(2, 4, 3)
    model = Mixer()
    spec = adapter.describe(model, batch)
    with pytest.raises(CaptureError, match=r"expected float32 .* as it was described; got float64"):
        adapter.record(copy.deepcopy(model).double(), batch, spec)
    del model.hook_dict["hook_mean"]
    with pytest.raises(CaptureError, match="'hook_mean' was there"):
        adapter.record(model, batch, spec)


def test_populations_of_bridges() -> None:
    batch = ids_of([4, 3, 3])
    ids = [row[:length].numpy() for row, length in zip(batch.values, batch.lengths, strict=True)]
    models = {f"m{seed}": bridged(tiny(seed)) for seed in (0, 1)}
    population = dynamo_plugin.capture(models, ids, {}, progress=False)
    for seed in (0, 1):
        states = population.states(f"m{seed}", RESIDUAL[1])
        expected = torch.cat([reference_stream(tiny(seed), torch.as_tensor(row))[1] for row in ids])
        torch.testing.assert_close(torch.as_tensor(states[:]), expected, rtol=1e-4, atol=1e-5)
