import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clapkit.encoders.adaptation import (
    checkpoint_layers,
    compile_towers,
    count_trainable,
    hold_still,
    layer_scales,
    modules_within,
    split_tower,
)
from clapkit.encoders.adapters import add_adapters, merged_state
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.heads import make_head
from clapkit.errors import ConfigError

IDS = torch.arange(4)[None] + 5  # [1, 4]
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}

# The compiler itself uses a deprecated function when it is imported, and looks at gradients of tensors that are no leaves.
compiles = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:[\s\S]*The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


class BertTower(nn.Module):
    """A text tower in the manner of those from transformers."""

    embedding_dim = 16

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.model = BertModel(BertConfig(vocab_size=50, **SMALL))

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.model.encoder.layer)

    def forward(self, captions: Sequence[str]) -> Tensor:
        ids = torch.stack([IDS[0] + len(caption) % 7 for caption in captions])
        pooled: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
        return pooled


@pytest.fixture
def bert_encoder(tiny_encoder: DualEncoder) -> DualEncoder:
    torch.manual_seed(1)
    tiny_encoder.text_tower, tiny_encoder.text_head = BertTower(), make_head("mlp", 16, 16)
    return tiny_encoder.eval()


@pytest.fixture
def small_encoder() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder("light", "small", embedding_dim=16, audio_options={"window_s": 0.5}, text_options={"captions": ["a b"]})


def tail_names(tower: nn.Module, layers: Sequence[nn.Module], embed: Callable[[], Tensor]) -> list[str]:
    tail = split_tower(tower, list(layers), embed)[-1]
    return [name for name, p in tower.named_parameters() if p in tail]


def embed_both(encoder: DualEncoder, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    length = encoder.audio_spec.window_samples
    waveform = torch.randn(batch, length, generator=generator)
    captions = ["a tone of 200 hertz", "a", "tone number 3"][:batch]
    audio, text = encoder(waveform, torch.full((batch,), length), captions)
    return torch.cat([audio, text])


def step(encoder: DualEncoder) -> dict[str, Tensor]:
    """Gradients of one step with the same dropout each time."""
    torch.manual_seed(5)
    encoder.zero_grad()
    embedded = embed_both(encoder)
    (embedded[:3] @ embedded[3:].T).square().sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


class TestTail:
    def test_is_the_final_norm_of_our_transformer(self, tiny_encoder: DualEncoder) -> None:
        tower = tiny_encoder.text_tower
        assert tail_names(tower, tower.layers, lambda: tower(["a"])) == ["norm.weight", "norm.bias"]

    def test_is_the_recurrent_layer_and_the_pooling_of_our_convolutional_tower(self, small_encoder: DualEncoder) -> None:
        tower = small_encoder.audio_tower
        names = tail_names(tower, tower.layers, lambda: tower(torch.zeros(1, 8000), torch.tensor([8000])))
        assert {name.split(".")[0] for name in names} == {"recurrent", "pool"}
        assert sum(name.startswith("pool") for name in names) == len(list(tower.pool.parameters()))
        assert len(names) == len(list(tower.pool.parameters())) + len(list(tower.recurrent.parameters()))

    def test_is_the_pooler_of_bert_unless_nothing_asks_it(self) -> None:
        from transformers import BertConfig, BertModel

        model = BertModel(BertConfig(vocab_size=50, **SMALL))
        layers = list(model.encoder.layer)
        assert tail_names(model, layers, lambda: model(IDS).pooler_output) == ["pooler.dense.weight", "pooler.dense.bias"]
        assert tail_names(model, layers, lambda: model(IDS).last_hidden_state) == []

    @pytest.mark.parametrize(
        ("stable", "tail"), [(False, []), (True, ["encoder.layer_norm.weight", "encoder.layer_norm.bias"])]
    )
    def test_follows_the_variant_of_wav2vec_whose_norm_is_registered_first(self, stable: bool, tail: list[str]) -> None:
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        kernels = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
        positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        norm = {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group"}
        model = Wav2Vec2Model(Wav2Vec2Config(**SMALL, **kernels, **positions, **norm))
        assert tail_names(model, model.encoder.layers, lambda: model(torch.zeros(1, 800)).last_hidden_state) == tail

    def test_leaves_out_the_batch_norm_of_htsat_which_is_registered_last_and_comes_first(self) -> None:
        from transformers import ClapAudioConfig, ClapAudioModel

        patches = {"spec_size": 64, "num_mel_bins": 16, "window_size": 2, "patch_size": 4, "patch_stride": [4, 4]}
        widths = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 16}
        model = ClapAudioModel(ClapAudioConfig(**patches, **widths, num_hidden_layers=2))
        names = tail_names(model, model.audio_encoder.layers, lambda: model(torch.zeros(1, 1, 256, 16)).pooler_output)
        assert names == ["audio_encoder.norm.weight", "audio_encoder.norm.bias"]

    def test_patch_merging_goes_with_the_block_behind_it(self) -> None:
        from transformers import SwinConfig, SwinModel

        model = SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=2))
        first, second = model.encoder.layers
        blocks = [*first.blocks, *second.blocks]
        parts = split_tower(model, blocks, lambda: model(torch.zeros(1, 3, 32, 32)).pooler_output)
        assert parts[:2] == [set(block.parameters()) for block in first.blocks]
        assert parts[2] == set(second.blocks[0].parameters()) | set(first.downsample.parameters())
        assert parts[3] == set(model.layernorm.parameters())

    def test_leaves_out_what_acts_before_the_layers_as_well(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.layer, self.bias = nn.Linear(2, 2), nn.Linear(2, 2), nn.Parameter(torch.zeros(2))

            def forward(self, x: Tensor) -> Tensor:
                states: Tensor = self.layer(self.table(x))
                return nn.functional.linear(states, self.table.weight) + self.bias

        tied = Tied()
        assert tail_names(tied, [tied.layer], lambda: tied(torch.ones(1, 2))) == ["bias"]

    def test_looking_for_it_changes_nothing(self, small_encoder: DualEncoder) -> None:
        tower = small_encoder.audio_tower.train()
        tower.stem.eval()
        tower.stages[0].requires_grad_(False)
        modes = [module.training for module in tower.modules()]
        grads = [p.requires_grad for p in tower.parameters()]
        state, random = copy.deepcopy(tower.state_dict()), torch.get_rng_state()
        with torch.no_grad():
            split_tower(tower, tower.layers, lambda: tower(torch.zeros(1, 8000), torch.tensor([8000])))
        assert [module.training for module in tower.modules()] == modes
        assert [p.requires_grad for p in tower.parameters()] == grads
        assert all(torch.equal(tensor, state[name]) for name, tensor in tower.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(not part._forward_hooks and not part._forward_pre_hooks for part in tower.modules())


def test_modules_within_need_all_their_parameters_among_the_given() -> None:
    tower = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), nn.ReLU(), nn.Linear(2, 2))
    assert modules_within(tower, tower[0].parameters()) == [tower[0], tower[0][0], tower[0][1]]
    assert modules_within(tower, [tower[2].weight]) == []


def test_batch_norms_with_a_frozen_gain_hold_still_among_trained_modules() -> None:
    tower = nn.ModuleDict({"stem": nn.Dropout(), "layer": nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.BatchNorm1d(2))})
    tower["layer"][1].requires_grad_(False)
    hold_still(tower, [tower["layer"]], training=True)
    assert [part.training for part in (tower["stem"], *tower["layer"])] == [False, True, False, True]


def test_layers_decay_from_output_to_input() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.norm = (nn.Linear(1, 1, bias=False) for _ in range(4))

    tower = Tower()
    # n = 2 layers: tail 1, last layer 0.5, first layer 0.5^2, before them 0.5^3
    scales = layer_scales(tower, [tower.a.parameters(), tower.b.parameters(), tower.norm.parameters()], decay=0.5)
    assert scales == {"stem.weight": 0.125, "a.weight": 0.25, "b.weight": 0.5, "norm.weight": 1.0}


class TestCheckpointing:
    def saved_bytes(self, encoder: DualEncoder) -> int:
        kept: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            embed_both(encoder)
        return sum(kept)

    def test_recurrent_layers_take_part(self) -> None:
        encoder = DualEncoder("tiny", "light", embedding_dim=16, text_options={"captions": ["a tone"]}).train()
        expected = step(encoder)
        checkpoint_layers(encoder.text_tower)
        found = step(encoder)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected if name.startswith("text_tower."))

    @pytest.mark.parametrize("fixture", ["bert_encoder", "small_encoder"])
    def test_keeps_less_and_changes_no_bit(self, fixture: str, request: pytest.FixtureRequest) -> None:
        encoder: DualEncoder = request.getfixturevalue(fixture)
        encoder.train()
        again = copy.deepcopy(encoder)
        checkpoint_layers(again.audio_tower)
        checkpoint_layers(again.text_tower)
        assert self.saved_bytes(again) < 0.8 * self.saved_bytes(encoder)
        encoder.load_state_dict(again.state_dict())  # the running statistics after counting bytes
        expected, found = step(encoder), step(again)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        # Batch norms counted the batch once, and the names of the weights stayed.
        state = again.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
        assert state.keys() == encoder.state_dict().keys()

    def test_needs_the_care_for_batch_norms_that_it_takes(
        self, tiny_encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("clapkit.encoders.adaptation._batch_norms", lambda module: [])
        checkpoint_layers(tiny_encoder.train().audio_tower)
        step(tiny_encoder)
        assert tiny_encoder.audio_tower.stages[0].convolutions[1].num_batches_tracked == 2

    def test_dropout_is_drawn_and_drawn_again_the_same(self, bert_encoder: DualEncoder) -> None:
        checkpoint_layers(bert_encoder.train().text_tower)
        first, same = step(bert_encoder), step(bert_encoder)
        bert_encoder.text_tower.eval()
        without = step(bert_encoder)
        name = "text_tower.model.encoder.layer.0.output.dense.weight"
        assert torch.equal(first[name], same[name])
        assert not torch.allclose(first[name], without[name])

    def test_a_deep_copy_computes_with_its_own_weights(self, tiny_encoder: DualEncoder) -> None:
        checkpoint_layers(tiny_encoder.text_tower)
        other = copy.deepcopy(tiny_encoder)
        with torch.no_grad():
            other.text_tower.layers[0].attention_out.weight *= -5.0
        assert not torch.allclose(other.encode_text(["a tone"]), tiny_encoder.encode_text(["a tone"]))
        step(other.train())
        assert all(p.grad is None for p in tiny_encoder.parameters())

    def test_layers_run_plainly_in_evaluation(self, tiny_encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint_layers(tiny_encoder.text_tower)

        def refuse(*args: object, **named: object) -> None:
            raise AssertionError("checkpoint was called")

        monkeypatch.setattr("clapkit.encoders.adaptation.checkpoint", refuse)
        tiny_encoder.encode_text(["a tone"])
        with torch.no_grad():
            tiny_encoder.train().encode_text(["a tone"])
        with pytest.raises(AssertionError, match="checkpoint was called"):
            tiny_encoder.encode_text(["a tone"])

    def test_a_tower_without_layers_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="--grad-checkpointing: the tower Linear has no layers"):
            checkpoint_layers(nn.Linear(2, 2))


class TestAdapters:
    def test_the_start_is_the_model_without_them(self, bert_encoder: DualEncoder) -> None:
        before = embed_both(bert_encoder)
        add_adapters(bert_encoder, "text", rank=2)
        assert torch.equal(embed_both(bert_encoder), before)

    def test_only_adapters_and_heads_are_trained(self, bert_encoder: DualEncoder) -> None:
        others = sum(p.numel() for p in bert_encoder.parameters()) - sum(
            p.numel() for p in bert_encoder.text_tower.parameters()
        )
        head = sum(p.numel() for p in bert_encoder.text_head.parameters())
        add_adapters(bert_encoder.train(), "text", rank=2)
        # A layer has 4 linears 16 -> 16, one 16 -> 32 and one 32 -> 16; rank 2 on inputs and outputs:
        # 4 * 2 * (16 + 16) + 2 * 2 * (16 + 32) = 256 + 192 = 448; 3 layers have 1344. The audio side is trained as a whole.
        assert head <= others
        assert count_trainable(bert_encoder) == others + 1344
        gradients = step(bert_encoder)
        names = [name for name in gradients if name.startswith("text_tower.")]
        assert len(names) == 3 * 6 * 2
        assert all(".lora_A." in name or ".lora_B." in name for name in names)

    def test_layers_keep_their_dropout_and_the_rest_holds_still(self, bert_encoder: DualEncoder) -> None:
        add_adapters(bert_encoder, "text", rank=2)
        model = bert_encoder.train().text_tower.model
        assert model.encoder.layer[0].output.dropout.training
        assert not model.embeddings.dropout.training
        assert not bert_encoder.eval().text_tower.model.encoder.layer[0].output.dropout.training

    def test_what_is_saved_needs_no_adapters(self, tiny_encoder: DualEncoder, tmp_path: Path) -> None:
        names = list(tiny_encoder.state_dict())
        add_adapters(tiny_encoder.train(), "text", rank=2)
        optimizer = torch.optim.SGD([p for p in tiny_encoder.parameters() if p.requires_grad], lr=0.5)
        for _ in range(3):
            step(tiny_encoder)
            optimizer.step()
        state = copy.deepcopy(tiny_encoder.state_dict())
        tiny_encoder.save(tmp_path)
        assert all(torch.equal(tensor, state[name]) for name, tensor in tiny_encoder.state_dict().items())
        assert tiny_encoder.training
        again = DualEncoder.load(tmp_path)
        assert list(again.state_dict()) == names
        trained = embed_both(tiny_encoder.eval())
        torch.testing.assert_close(embed_both(again), trained, atol=1e-5, rtol=0)
        for name, part in tiny_encoder.named_modules():
            if hasattr(part, "base_layer"):  # the adapters did something
                assert (again.get_submodule(name).weight - part.base_layer.weight).abs().max() > 1e-4

    def test_merging_adds_twice_the_product(self, tiny_encoder: DualEncoder) -> None:
        add_adapters(tiny_encoder, "text", rank=2)
        part = tiny_encoder.text_tower.layers[0].attention_out
        nn.init.normal_(part.lora_B["default"].weight)
        merged = merged_state(tiny_encoder)["text_tower.layers.0.attention_out.weight"]
        product = part.lora_B["default"].weight @ part.lora_A["default"].weight
        torch.testing.assert_close(merged, part.base_layer.weight + 2 * product)

    def test_a_checkpoint_keeps_them_apart(self, tiny_encoder: DualEncoder) -> None:
        other = copy.deepcopy(tiny_encoder)
        add_adapters(tiny_encoder, "text", rank=2)
        nn.init.normal_(tiny_encoder.text_tower.layers[0].attention_out.lora_B["default"].weight)
        add_adapters(other, "text", rank=2)
        other.load_state_dict(tiny_encoder.state_dict())
        assert any("lora_A" in name for name in tiny_encoder.state_dict())
        assert torch.equal(embed_both(other), embed_both(tiny_encoder))

    def test_a_deep_copy_has_its_own(self, tiny_encoder: DualEncoder) -> None:
        add_adapters(tiny_encoder.train(), "text", rank=2)
        step(copy.deepcopy(tiny_encoder))
        assert all(p.grad is None for p in tiny_encoder.parameters())

    def test_recomputing_works_with_them(self, bert_encoder: DualEncoder) -> None:
        add_adapters(bert_encoder.train(), "text", rank=2)
        expected = step(bert_encoder)
        checkpoint_layers(bert_encoder.text_tower)
        found = step(bert_encoder)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)

    def test_towers_without_linear_layers_are_refused_before_anything_changes(self, tiny_encoder: DualEncoder) -> None:
        names = list(tiny_encoder.state_dict())
        with pytest.raises(ConfigError, match="--lora audio: the audio tower tiny has no linear layers inside its layers"):
            add_adapters(tiny_encoder, "both", rank=2)
        assert list(tiny_encoder.state_dict()) == names
        assert all(p.requires_grad for p in tiny_encoder.parameters())
        recurrent = DualEncoder("tiny", "light", embedding_dim=8, text_options={"captions": ["a"]})
        with pytest.raises(ConfigError, match="the text tower light has no linear layers"):
            add_adapters(recurrent, "text", rank=2)

    def test_the_output_of_fused_attention_is_left_alone(self, tiny_encoder: DualEncoder) -> None:
        tiny_encoder.text_tower.layers.append(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True))
        add_adapters(tiny_encoder, "text", rank=2)
        layer = tiny_encoder.text_tower.layers[1]
        assert not hasattr(layer.self_attn.out_proj, "base_layer")
        assert hasattr(layer.linear1, "base_layer")

    def test_linears_whose_weights_are_taken_without_a_call_are_left_alone(self, tiny_encoder: DualEncoder) -> None:
        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.taken, self.called = nn.Linear(16, 16), nn.Linear(16, 16)

            def forward(self, states: Tensor, real: Tensor) -> Tensor:
                called: Tensor = self.called(nn.functional.linear(states, self.taken.weight))
                return called

        tiny_encoder.text_tower.layers[0] = Layer()
        add_adapters(tiny_encoder, "text", rank=2)
        assert type(tiny_encoder.text_tower.layers[0].taken) is nn.Linear
        assert hasattr(tiny_encoder.text_tower.layers[0].called, "base_layer")

    def test_a_missing_peft_is_said(self, tiny_encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ConfigError, match=r"--lora: peft is not installed; pip install 'clapkit\[lora\]'"):
            add_adapters(tiny_encoder, "text", rank=2)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
class TestCompiling:
    pytestmark = compiles

    @pytest.mark.parametrize("fixture", ["tiny_encoder", "bert_encoder"])
    def test_layers_compile_whole_and_compute_the_same(self, fixture: str, request: pytest.FixtureRequest) -> None:
        encoder: DualEncoder = request.getfixturevalue(fixture)
        names, expected = list(encoder.state_dict()), embed_both(encoder)
        torch._dynamo.utils.counters.clear()
        compile_towers(encoder, backend="eager")
        torch.testing.assert_close(embed_both(encoder), expected, atol=1e-6, rtol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert not torch._dynamo.utils.counters["graph_break"]
        assert list(encoder.state_dict()) == names

    def test_a_deep_copy_has_its_own_weights(self, tiny_encoder: DualEncoder) -> None:
        compile_towers(tiny_encoder, backend="eager")
        other = copy.deepcopy(tiny_encoder)
        with torch.no_grad():
            other.text_tower.layers[0].attention_out.weight *= -5.0
        assert not torch.allclose(other.encode_text(["a tone"]), tiny_encoder.encode_text(["a tone"]))

    @pytest.mark.slow
    def test_adapters_and_recomputing_go_with_it(self, tiny_encoder: DualEncoder) -> None:
        tiny_encoder.freeze("audio")
        add_adapters(tiny_encoder.train(), "text", rank=2)
        expected = step(tiny_encoder)
        checkpoint_layers(tiny_encoder.text_tower)
        compile_towers(tiny_encoder, backend="aot_eager")
        found = step(tiny_encoder)
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)

    def test_finding_the_tail_compiles_nothing(self, tiny_encoder: DualEncoder) -> None:
        def refuse(graph: object, inputs: object) -> None:
            raise AssertionError("compiled")

        compile_towers(tiny_encoder, backend=refuse)  # type: ignore[arg-type]
        assert set(tiny_encoder.learning_rate_scales(0.5).values()) > {1.0, 0.5}

    def test_recomputed_batch_norms_are_refused(self, tiny_encoder: DualEncoder) -> None:
        tiny_encoder.text_tower.layers.append(nn.BatchNorm1d(2))
        checkpoint_layers(tiny_encoder.text_tower)
        with pytest.raises(ConfigError, match="--compile with --grad-checkpointing: layers with batch norm"):
            compile_towers(tiny_encoder)

    def test_nothing_to_compile_is_said(self, tiny_encoder: DualEncoder) -> None:
        tiny_encoder.text_tower = nn.Linear(2, 2)
        with pytest.raises(ConfigError, match="--compile: the towers tiny and tiny have no layers that can be compiled"):
            compile_towers(tiny_encoder)

    def test_layers_that_the_compiler_gets_wrong_and_recurrent_ones_are_left_out(self, tiny_encoder: DualEncoder) -> None:
        tiny_encoder.text_tower.layers.append(nn.GRU(2, 2))
        compile_towers(tiny_encoder, backend="eager")
        assert [layer._compiled_call_impl is not None for layer in tiny_encoder.text_tower.layers] == [True, False]
        assert [layer._compiled_call_impl for layer in tiny_encoder.audio_tower.layers] == [None, None]

    @pytest.mark.slow
    def test_a_step_is_that_of_the_plain_model(self, tiny_encoder: DualEncoder) -> None:
        expected = step(tiny_encoder.train())  # has no dropout, which compiled layers draw in another way
        compile_towers(tiny_encoder)
        found = step(tiny_encoder)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
