import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch

from clapkit import registry
from clapkit.encoders.audio._ced_tower import DecibelMel
from clapkit.encoders.audio.ced import build
from clapkit.errors import CheckpointError, ConfigError

LAYERS, WIDTH, HEADS = 12, 192, 3
LAYER_SHAPES = {
    "norm1": [WIDTH],
    "attn.qkv": [3 * WIDTH, WIDTH],
    "attn.proj": [WIDTH, WIDTH],
    "norm2": [WIDTH],
    "mlp.fc1": [4 * WIDTH, WIDTH],
    "mlp.fc2": [WIDTH, 4 * WIDTH],
}
CLASSIFIER = ["outputlayer.0.bias", "outputlayer.0.weight", "outputlayer.1.bias", "outputlayer.1.weight"]


def draw_checkpoint():
    """Random tensors of ced-tiny under the names of the original code, so large that every one of them matters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, mean=0.0):
        scale = 0.2 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5
        return mean + scale * torch.randn(*shape, generator=generator)

    tensors = {
        "time_pos_embed": 5 * draw(1, WIDTH, 1, 63),
        "freq_pos_embed": 5 * draw(1, WIDTH, 4, 1),
        "init_bn.1.weight": draw(64, mean=1.0),
        "init_bn.1.bias": draw(64),
        "init_bn.1.running_mean": draw(64, mean=-20.0),
        "init_bn.1.running_var": draw(64, mean=300.0),
        "init_bn.1.num_batches_tracked": torch.tensor(7),
        # Small, so that the first norm shows its epsilon.
        "patch_embed.proj.weight": 0.05 * draw(WIDTH, 1, 16, 16),
        "patch_embed.proj.bias": 0.05 * draw(WIDTH),
    }
    for layer in range(LAYERS):
        for part, shape in LAYER_SHAPES.items():
            tensors[f"blocks.{layer}.{part}.weight"] = draw(*shape, mean=1.0 if "norm" in part else 0.0)
            tensors[f"blocks.{layer}.{part}.bias"] = draw(shape[0])
    head = {"outputlayer.0": [WIDTH], "outputlayer.1": [5, WIDTH]}
    for part, shape in {"norm": [WIDTH], **head}.items():
        tensors[f"{part}.weight"], tensors[f"{part}.bias"] = draw(*shape), draw(shape[0])
    return tensors


def hub_names(tensors):
    """The same under the names of the conversion on the Hub."""
    return {
        name if name.startswith("outputlayer") else "encoder." + name.replace("init_bn.1.", "init_bn."): tensor
        for name, tensor in tensors.items()
    }


def write_hub_folder(folder, tensors, **config):
    folder.mkdir()
    safetensors.torch.save_file(hub_names(tensors), folder / "model.safetensors")
    numbers = {"model_type": "ced", "n_mels": 64, "hop_size": 160, "f_max": 8000, "target_length": 1012, "pooling": "mean"}
    (folder / "config.json").write_text(json.dumps(numbers | config))
    return folder


@pytest.fixture(scope="module")
def checkpoint():
    return draw_checkpoint()


@pytest.fixture(scope="module")
def stored(checkpoint, tmp_path_factory):
    """The checkpoint as others publish it: form -> path."""
    folder = tmp_path_factory.mktemp("ced")
    paths = {"pt": folder / "ced.pt", "wrapped": folder / "wrapped.pt", "safetensors": folder / "ced.safetensors"}
    mel = DecibelMel()
    constants = {"front_end.0.spectrogram.window": mel.hann, "front_end.0.mel_scale.fb": mel.filters}
    torch.save(checkpoint | constants, paths["pt"])
    torch.save({"model": checkpoint}, paths["wrapped"])
    safetensors.torch.save_file(checkpoint, paths["safetensors"])
    return paths | {"hub": write_hub_folder(folder / "hub", checkpoint)}


@pytest.fixture(scope="module")
def tower(stored):
    return build(weights=str(stored["safetensors"])).eval()


def noise(samples, *, seed=0, scale=0.1):
    return scale * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def embed(tower, *clips, window=None):
    """Embeddings of clips that are padded to a window together."""
    num_samples = torch.tensor([len(clip) for clip in clips])
    waveform = torch.zeros(len(clips), window or max(num_samples))
    for row, clip in zip(waveform, clips, strict=True):
        row[: len(clip)] = clip
    with torch.no_grad():
        return tower(waveform, num_samples)


# --- oracles: the paper's network in float64, one frame, patch, head and query at a time -------------------------------------


def naive_decibels(clip):
    """Mel spectrogram [M, F] in decibels of one clip, by its definition."""
    signal = np.pad(clip.numpy().astype(np.float64), 256, mode="reflect")
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / 512) for i in range(512)])
    edges = np.linspace(0, 2595 * math.log10(1 + 8000 / 700), 66)
    edges = 700 * (10 ** (edges / 2595) - 1)
    hertz = np.arange(257) * 16000 / 512
    columns = []
    for frame in range(1 + len(clip) // 160):
        power = np.abs(np.fft.rfft(signal[frame * 160 : frame * 160 + 512] * window)) ** 2
        mel = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            weight = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)).clip(min=0)
            mel.append(10 * math.log10(max(float(weight @ power), 1e-10)))
        columns.append(mel)
    decibels = np.array(columns).T
    return np.maximum(decibels, decibels.max() - 120)


def layer_norm(vectors, weights, name):
    centred = vectors - vectors.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(vectors, weights, name):
    return vectors @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def naive_attention(states, weights, name):
    parts = linear(states, weights, f"{name}.qkv")
    out = np.zeros_like(states)
    for head in range(HEADS):
        query, key, value = (parts[:, part * WIDTH + head * 64 :][:, :64] for part in range(3))
        for row, vector in enumerate(query):
            score = np.exp(key @ vector / 8)
            out[row, head * 64 : head * 64 + 64] = score / score.sum() @ value
    return linear(out, weights, f"{name}.proj")


def naive_embedding(clip, checkpoint):
    """The mean over patches of one clip, from tensors under their original names."""
    weights = {name: tensor.double().numpy() for name, tensor in checkpoint.items()}
    mean, variance = weights["init_bn.1.running_mean"], weights["init_bn.1.running_var"]
    normal = (naive_decibels(clip) - mean[:, None]) / np.sqrt(variance + 1e-5)[:, None]
    normal = normal * weights["init_bn.1.weight"][:, None] + weights["init_bn.1.bias"][:, None]
    states = []
    for band in range(4):
        for step in range(normal.shape[1] // 16):
            patch = normal[band * 16 : band * 16 + 16, step * 16 : step * 16 + 16]
            vector = (weights["patch_embed.proj.weight"][:, 0] * patch).sum(axis=(1, 2)) + weights["patch_embed.proj.bias"]
            states.append(vector + weights["time_pos_embed"][0, :, 0, step] + weights["freq_pos_embed"][0, :, band, 0])
    states = np.array(states)
    for layer in range(LAYERS):
        name = f"blocks.{layer}"
        states = states + naive_attention(layer_norm(states, weights, f"{name}.norm1"), weights, f"{name}.attn")
        hidden = linear(layer_norm(states, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        states = states + linear(hidden, weights, f"{name}.mlp.fc2")
    return layer_norm(states, weights, "norm").mean(axis=0)


@pytest.mark.parametrize("samples", [2400, 5119, 6000, 8001])
def test_an_embedding_is_that_of_the_naive_network(tower, checkpoint, samples):
    clip = noise(samples)
    expected = torch.from_numpy(naive_embedding(clip, checkpoint)).float()
    torch.testing.assert_close(embed(tower, clip, window=9000)[0], expected, atol=1e-5, rtol=0)
    assert expected.abs().mean() > 0.05


def test_decibels_are_those_of_a_naive_spectrogram():
    clips = [noise(4000, scale=3.0), noise(2900), noise(2900, scale=1e-6), torch.zeros(2441)]
    clips[0][1000:3000] = 0
    # Halfway between two frames; its mirror image at 2 * 2440 - 1680 = 20 * 160 is in the middle of one behind the end, louder.
    clips[3][1680] = 1000
    waveform = torch.stack([torch.nn.functional.pad(clip, (0, 4000 - len(clip))) for clip in clips])
    decibels, real = DecibelMel()(waveform, torch.tensor([4000, 2900, 2900, 2441]))
    assert real.sum(dim=1).tolist() == [26, 19, 19, 16]
    for row, clip in enumerate(clips):
        torch.testing.assert_close(
            decibels[row][real[row]].T, torch.from_numpy(naive_decibels(clip)).float(), atol=1e-3, rtol=0
        )


def test_the_quietest_value_is_120_db_below_the_loudest_of_the_clip_itself():
    loud, silent = 10 * torch.cos(2 * math.pi * 1000 * torch.arange(8000) / 16000), torch.zeros(8000)
    loud[4000:] = 0
    decibels, _ = DecibelMel()(torch.stack([loud, silent]), torch.tensor([8000, 8000]))
    # A cosine of height 10 at a frequency of the transform has power (10 * 256 / 2)^2 there (256 is the sum of the window) and
    # a quarter of it in the bins beside; 10 log10(1280^2) = 62.1 dB, so digital silence is at about -58 dB and not at -100.
    assert decibels[0].max().item() == pytest.approx(62.1, abs=1.0)
    assert decibels[0].min().item() == pytest.approx(decibels[0].max().item() - 120, abs=1e-4)
    assert torch.equal(decibels[1], torch.full_like(decibels[1], -100.0))


# --- clips of different lengths ----------------------------------------------------------------------------------------------


def test_an_embedding_depends_neither_on_neighbours_nor_on_padding(tower):
    clips = [noise(length, seed=length, scale=scale) for length, scale in ((16000, 5.0), (2400, 0.1), (7000, 1e-3), (300, 1.0))]
    together = embed(tower, *clips, window=20000)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(together[row], embed(tower, clip)[0], atol=1e-5, rtol=0)
    assert torch.cdist(together, together).fill_diagonal_(1).min() > 0.1


def test_what_lies_behind_the_end_is_not_heard(tower):
    waveform = torch.stack([noise(8000), noise(8000)])
    waveform[1, 5000:] = 100.0
    with torch.no_grad():
        embeddings = tower(waveform, torch.tensor([5000, 5000]))
    assert torch.equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize("samples", [1, 100, 2399])
def test_a_clip_below_one_patch_is_heard_with_silence_behind_it(tower, samples):
    clip = noise(samples, scale=1.0)
    padded = torch.nn.functional.pad(clip, (0, 2400 - samples))
    assert torch.equal(embed(tower, clip), embed(tower, padded))
    assert not torch.equal(embed(tower, clip), embed(tower, torch.zeros(2400)))


def test_frames_that_fill_no_patch_are_dropped(tower):
    # 5120 samples are 33 frames and 7519 samples 47: two patches of 16 each; 7520 samples are 48 frames, three patches.
    clip = noise(7520)
    changed = clip.clone()
    changed[6000:] *= -1  # only frames from 32 on read samples from 32 * 160 - 256 = 4864 on; the sign is not heard inside
    assert DecibelMel()(clip[None], torch.tensor([7519]))[1].sum() == 47
    changed[6000:] *= 0.9
    difference = (embed(tower, clip[:7519]) - embed(tower, changed[:7519])).abs().max()
    assert difference < 1e-6 < (embed(tower, clip) - embed(tower, changed)).abs().max()


def test_batch_statistics_leave_out_what_lies_behind_the_end():
    tower = build(size="tiny", window_s=0.5).train()
    short, long = noise(4000, scale=1e-3), noise(8000)
    tower(torch.stack([torch.nn.functional.pad(short, (0, 4000)), long]), torch.tensor([4000, 8000]))
    frames = np.concatenate([naive_decibels(short), naive_decibels(long)], axis=1)
    # One step of momentum 0.01 from 0: a hundredth of the mean over all 26 + 51 frames.
    expected = torch.from_numpy(frames.mean(axis=1)).float() / 100
    torch.testing.assert_close(tower.normalize.running_mean, expected, atol=1e-5, rtol=0)


# --- windows and positions ---------------------------------------------------------------------------------------------------


def test_shorter_windows_use_the_first_time_positions(stored, tower):
    short = build(weights=str(stored["safetensors"]), window_s=1.0).eval()
    assert short.time_positions.shape == (1, WIDTH, 1, 6)  # 101 frames
    assert short.audio_spec.window_samples == 16000
    assert not any("stretched" in note for note in short.notes)
    torch.testing.assert_close(embed(short, noise(16000)), embed(tower, noise(16000)), atol=1e-6, rtol=0)


def test_longer_windows_stretch_the_time_positions(stored, checkpoint):
    long = build(weights=str(stored["safetensors"]), window_s=20.16).eval()
    assert long.time_positions.shape[3] == 126  # 2017 frames, twice 63 patches
    table, stretched = checkpoint["time_pos_embed"][0, 0, 0], long.time_positions[0, 0, 0].detach()
    # Twice as many columns lie a quarter of an old one before and behind the centre of each: 3/4 of it, 1/4 of its neighbour.
    assert stretched[10].item() == pytest.approx((0.75 * table[5] + 0.25 * table[4]).item(), abs=1e-6)
    assert stretched[11].item() == pytest.approx((0.75 * table[5] + 0.25 * table[6]).item(), abs=1e-6)
    assert stretched[0] == table[0]
    assert stretched[-1] == table[-1]
    note = "ced-tiny: time positions for 63 patches (10.08 s) are stretched to 126 (20.16 s)"
    assert sum(found.startswith(note) for found in long.notes) == 1
    assert embed(long, noise(round(20.16 * 16000))).isfinite().all()


@pytest.mark.parametrize("window_s", [0.1, 0.0, -1.0, math.nan])
def test_a_window_below_one_patch_is_refused(window_s):
    with pytest.raises(ConfigError, match=r"window_s=.*expected 0\.15 s or more"):
        build(size="tiny", window_s=window_s)


def test_the_shortest_window_holds_one_patch():
    tower = build(size="tiny", window_s=0.15)
    assert tower.time_positions.shape[3] == 1
    assert embed(tower, noise(2400)).shape == (1, WIDTH)


# --- weights -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pt", "wrapped", "hub"])
def test_every_published_form_gives_the_same_tower(stored, tower, form):
    loaded = build(weights=str(stored[form]))
    assert loaded.state_dict().keys() == tower.state_dict().keys()
    assert all(torch.equal(tensor, tower.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.rebuild_options == tower.rebuild_options == {"weights": None, "size": "tiny", "window_s": 10.0}
    assert loaded.notes == tower.notes == [f"ced-tiny: the classifier is left out ({', '.join(CLASSIFIER)})"]


def test_a_bare_encoder_of_the_hub_loads_without_a_note(checkpoint, tmp_path):
    bare = {name.replace("init_bn.1.", "init_bn."): t for name, t in checkpoint.items() if name not in CLASSIFIER}
    safetensors.torch.save_file(bare, tmp_path / "ced.safetensors")
    assert build(weights=str(tmp_path / "ced.safetensors")).notes == []


def test_half_precision_weights_are_loaded_in_full(checkpoint, tmp_path):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in checkpoint.items()}
    safetensors.torch.save_file(half, tmp_path / "ced.safetensors")
    tower = build(weights=str(tmp_path / "ced.safetensors"))
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


def test_a_tower_is_rebuilt_from_its_options_and_its_own_weights(stored, tower):
    options = {key: value for key, value in tower.rebuild_options.items() if value is not None}
    rebuilt = registry.build("audio encoder", "ced", json.loads(json.dumps(options))).eval()
    rebuilt.load_state_dict(tower.state_dict())
    assert torch.equal(embed(rebuilt, noise(5000)), embed(tower, noise(5000)))
    assert rebuilt.rebuild_options == tower.rebuild_options


def test_a_size_that_is_not_that_of_the_weights_is_refused(stored):
    assert build(weights=str(stored["safetensors"]), size="tiny").embedding_dim == WIDTH
    with pytest.raises(ConfigError, match=r"option size=base: .*ced\.safetensors is ced-tiny; leave size out"):
        build(weights=str(stored["safetensors"]), size="base")


DAMAGE = {
    "missing": (lambda t: t.pop("blocks.3.mlp.fc2.bias"), r"1 tensors are missing \(first layers\.3\.contract\.bias\)"),
    "no positions": (lambda t: t.pop("time_pos_embed"), r"has no time_pos_embed"),
    "flat positions": (lambda t: t.update(time_pos_embed=torch.zeros(63, WIDTH)), r"time_pos_embed of four dimensions"),
    "surplus": (lambda t: t.update(cls_token=torch.zeros(1)), r"1 tensors are no part of CED \(first cls_token\)"),
    "twice": (lambda t: t.update({"init_bn.bias": torch.zeros(64)}), r"no part of CED \(first init_bn\.bias\)"),
    "gate": (lambda t: t.update({"blocks.0.ls1.gamma": torch.ones(WIDTH)}), r"first blocks\.0\.ls1\.gamma"),
    "deeper": (lambda t: t.update({"blocks.12.norm1.bias": torch.ones(WIDTH)}), r"1 have no place \(first layers\.12"),
    "shape": (lambda t: t.update({"norm.bias": torch.ones(5)}), r"another shape \(first norm\.bias: \[5\], expected \[192\]\)"),
    "width": (lambda t: t.update({"patch_embed.proj.weight": torch.ones(200, 1, 16, 16)}), r"200 wide, expected .*base 768"),
    "other": (lambda t: (t.clear(), t.update(w=torch.ones(3))), r"no checkpoint of CED; name one"),
    "window": (lambda t: t.update({"front_end.0.spectrogram.window": torch.ones(400)}), r"trained on other spectrograms"),
    "filters": (lambda t: t.update({"front_end.0.mel_scale.fb": torch.ones(257, 64)}), r"mel_scale\.fb is not that of CED"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path, damage, message):
    tensors = dict(checkpoint)
    damage(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "ced.safetensors")
    with pytest.raises(CheckpointError, match=message):
        build(weights=str(tmp_path / "ced.safetensors"))


class Evil:
    def __reduce__(self):
        return print, ("code of a pickle runs",)


def test_a_pickle_with_code_is_refused(checkpoint, tmp_path, capsys):
    torch.save(checkpoint | {"evil": Evil()}, tmp_path / "ced.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        build(weights=str(tmp_path / "ced.pt"))
    assert capsys.readouterr().out == ""


def test_a_truncated_file_is_refused(stored, tmp_path):
    content = stored["safetensors"].read_bytes()
    (tmp_path / "ced.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        build(weights=str(tmp_path / "ced.safetensors"))


def test_a_file_that_holds_more_than_tensors_is_refused(checkpoint, tmp_path):
    torch.save(checkpoint | {"epoch": 3}, tmp_path / "ced.pt")
    with pytest.raises(CheckpointError, match="epoch is no tensor; expected a checkpoint of CED"):
        build(weights=str(tmp_path / "ced.pt"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "dasheng"}, "model_type is 'dasheng', CED has 'ced'"),
        ({"model_type": None}, "model_type is None"),
        ({"n_mels": 128}, "n_mels is 128, CED has 64"),
        ({"hop_size": 320}, "hop_size is 320, CED has 160"),
    ],
)
def test_a_folder_of_another_model_is_refused(checkpoint, tmp_path, config, message):
    with pytest.raises(CheckpointError, match=message):
        build(weights=str(write_hub_folder(tmp_path / "hub", checkpoint, **config)))


def test_a_folder_needs_its_config_and_its_weights(checkpoint, tmp_path):
    folder = write_hub_folder(tmp_path / "hub", checkpoint)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as weights"):
        build(weights=str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        build(weights=str(folder))


# --- training ----------------------------------------------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    tower = build(size="tiny", window_s=0.5).train()
    target = torch.randn(2, WIDTH)
    (tower(torch.randn(2, 8000), torch.tensor([8000, 4000])) * target).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_training_adds_no_randomness():
    tower = build(size="tiny", window_s=0.5).train()
    waveform, num_samples = noise(16000).view(2, 8000), torch.tensor([8000, 5000])
    assert torch.equal(tower(waveform, num_samples), tower(waveform, num_samples))


def test_half_precision_does_not_reach_the_spectrogram(tower):
    seen = []
    hook = tower.normalize.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    full = embed(tower, noise(8000, scale=1e-3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = embed(tower, noise(8000, scale=1e-3))
    hook.remove()
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert seen[1][1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full, half.float()).item() > 0.999


@pytest.fixture
def without_numbers(monkeypatch):
    """Large towers are made without drawing their weights, which takes seconds."""
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda module: None)
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, **options: tensor)


@pytest.mark.parametrize(
    ("size", "width", "millions"), [("tiny", 192, 5.4), ("mini", 256, 9.6), ("small", 384, 21.4), ("base", 768, 85.3)]
)
def test_sizes_have_the_numbers_of_the_paper(without_numbers, size, width, millions):
    # The paper counts the classifier of 527 outputs with them: 5.5, 9.6, 22 and 86 million.
    tower = build(size=size)
    assert tower.embedding_dim == width
    assert len(tower.layers) == LAYERS
    assert {layer.num_heads for layer in tower.layers} == {width // 64}
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_default_is_the_base_size_at_the_window_of_the_paper(without_numbers):
    tower = build()
    assert tower.rebuild_options == {"weights": None, "size": "base", "window_s": 10.0}
    assert tower.audio_spec.window_samples == 160000
    assert tower.time_positions.shape == (1, 768, 1, 62)  # 1001 frames
