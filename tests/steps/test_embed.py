import io
import json
import os
import shutil

import numpy as np
import pytest

from clapkit.config import EmbedConfig
from clapkit.data.manifest import Manifest
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.errors import ConfigError, ManifestError, RunDirError
from clapkit.index.table import load_table, read_info
from clapkit.steps import embed, embed_input, inputs
from clapkit.steps.embed_job import audio_policy
from clapkit.steps.embedding import embed_clips


@pytest.fixture
def run_embed(runs_root, make_run, reporter):
    """Run the step into a new run directory; gives the directory and the result."""

    def run(*addresses, **options):
        config = EmbedConfig(inputs=tuple(map(str, addresses)), runs_root=runs_root, device="cpu", **options)
        run_dir = make_run("embed", f"run{len(list((runs_root / 'embed').glob('*')))}")
        result = embed.run(config, run_dir, reporter)
        run_dir.finish(result)
        return run_dir, result

    return run


def test_the_data_of_the_model_are_embedded_with_their_captions_by_default(run_embed, runs_root):
    run_dir, result = run_embed()
    info = read_info(run_dir.path)
    assert result["counts"] == {"audio": 6, "text": 12}
    assert result["modality"] == info.modality == "both"
    assert info.dtype == "float16"
    assert info.model_path == str(runs_root / "train/first/model")
    assert info.audio_policy["window_s"] == 1.0
    audio, text = load_table(run_dir.path, "audio", info=info), load_table(run_dir.path, "text", info=info)
    assert audio.ids == [f"toy/{name}" for name in ("dog", "rain", "bell", "car", "bird", "wind")]
    assert audio.rows([0])[0]["captions"] == ["a dog is heard", "the sound of a dog"]
    assert text.ids[:3] == ["toy/dog", "toy/dog", "toy/rain"]
    assert text.rows([1])[0]["captions"] == ["the sound of a dog"]
    assert [entry["path"] for entry in run_dir.record["inputs"]] == [
        str(runs_root / "train/first/model"),
        str(runs_root / "prepare/toy/manifest.jsonl"),
    ]
    assert run_dir.rejected_path.read_text() == ""


def test_one_split_and_one_modality_can_be_asked_for(run_embed):
    _, result = run_embed("toy", split="test", modality="audio", store="fp32")
    assert result["counts"] == {"audio": 4}
    assert result["dtype"] == "float32"
    assert result["data"]["split"] == "test"


def test_without_pooling_every_window_has_a_row_with_its_span(run_embed):
    run_dir, result = run_embed("toy", modality="audio", pool="none", hop_s=0.5)
    table = load_table(run_dir.path, "audio", info=read_info(run_dir.path))
    rows = [(row["start_s"], row["end_s"]) for row in table.rows(range(len(table))) if row["id"] == "toy/bell"]
    assert rows == [(0.0, 1.0), (0.5, 1.5)]
    assert result["num_windows"] == len(table)


def test_files_and_folders_are_embedded_once_each(run_embed, corpus):
    run_dir, result = run_embed(corpus.root / "dog.wav", corpus.root)
    table = load_table(run_dir.path, "audio", info=read_info(run_dir.path))
    assert result["counts"] == {"audio": 6}
    assert table.ids[0] == (corpus.root / "dog.wav").as_posix()
    assert table.rows([0])[0]["path"] == str(corpus.root / "dog.wav")


def test_folders_are_searched_recursively(run_embed, corpus, tmp_path):
    deep = tmp_path / "sounds/a/b"
    deep.mkdir(parents=True)
    (deep / "x.WAV").write_bytes((corpus.root / "dog.wav").read_bytes())
    (deep / "notes.txt").write_text("no sound")
    assert run_embed(tmp_path / "sounds")[1]["counts"] == {"audio": 1}


def test_paths_come_from_standard_input(run_embed, corpus, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{corpus.root / 'dog.wav'}\n\n{corpus.root / 'rain.wav'}\n"))
    assert run_embed("-")[1]["counts"] == {"audio": 2}


def test_a_text_file_gives_one_row_per_line(run_embed, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a dog\n\n  rain  \n", encoding="utf-8")
    run_dir, result = run_embed(path, modality="text")
    assert result["counts"] == {"text": 2}
    table = load_table(run_dir.path, "text", info=read_info(run_dir.path))
    assert table.columns(["id", "caption"]) == {"id": ["captions.txt:1", "captions.txt:3"], "caption": ["a dog", "rain"]}


def test_bad_files_are_listed_counted_and_said(run_embed, corpus, tmp_path, reporter):
    (tmp_path / "bad.wav").write_bytes(b"nonsense")
    run_dir, result = run_embed(corpus.root / "dog.wav", tmp_path / "bad.wav")
    assert result["num_rejected"] == 1
    rejected = json.loads(run_dir.rejected_path.read_text())
    assert rejected["item"] == (tmp_path / "bad.wav").as_posix()
    assert "bad.wav" in rejected["reason"]
    assert any("1 of 2 clips could not be embedded" in message for message in reporter.warned)


def test_the_same_files_give_the_same_bytes_whatever_the_batch_size(run_embed):
    first, _ = run_embed("toy", batch_size=1, store="fp32")
    second, _ = run_embed("toy", batch_size=64, store="fp32")
    for name in ("audio_emb/audio_emb_0.npy", "text_emb/text_emb_0.npy"):
        np.testing.assert_allclose(np.load(first.path / name), np.load(second.path / name), atol=2e-6)


def test_the_model_comes_through_the_loader(run_embed, monkeypatch, model):
    calls = []
    monkeypatch.setattr(inputs, "load_model", lambda folder, device: calls.append((folder.name, device)) or model)
    run_embed("toy", modality="audio")
    assert calls == [("model", "cpu")]


def test_a_model_of_transformers_embeds_with_its_own_front_end(run_embed, clap_folder):
    run_dir, result = run_embed("toy", model=str(clap_folder), store="fp32")
    info = read_info(run_dir.path)
    assert (info.width, result["counts"]) == (12, {"audio": 6, "text": 12})
    assert (info.audio_policy["sample_rate"], info.audio_policy["window_s"]) == (48000, 1.0)
    assert (info.model_path, info.model_fingerprint) == (str(clap_folder), model_fingerprint(clap_folder))
    again, _ = run_embed("toy", model=str(clap_folder), store="fp32", batch_size=1)
    for name in ("audio_emb/audio_emb_0.npy", "text_emb/text_emb_0.npy"):
        np.testing.assert_allclose(np.load(run_dir.path / name), np.load(again.path / name), atol=2e-6)


def test_captions_are_read_in_the_language_that_the_data_or_the_flag_say(run_embed, polyglot, monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "load_model", lambda path, device: polyglot)
    path = tmp_path / "captions.txt"
    path.write_text("Regen\n", encoding="utf-8")
    run_embed(path, modality="text")
    run_embed(path, modality="text", lang="de")
    assert polyglot.text_tower.seen == [("Regen", "en"), ("Regen", "de")]


def test_a_language_that_nobody_looks_at_is_refused(run_embed, tmp_path):
    with pytest.raises(ConfigError, match="--lang de: belongs to a text file of captions; data say the language of theirs"):
        run_embed("toy", lang="de")
    path = tmp_path / "captions.txt"
    path.write_text("Regen\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--lang de: the model first reads all languages alike and is told none; leave"):
        run_embed(path, modality="text", lang="de")


@pytest.mark.parametrize(
    ("addresses", "options", "error", "message"),
    [
        (["nowhere.wav"], {}, RunDirError, "input nowhere.wav: no such file or folder, and no prepare run: looked for"),
        (["toy", "toy"], {}, ConfigError, "stands alone"),
        (["{corpus}/dog.wav", "toy"], {}, RunDirError, "cannot be mixed with files"),
        (["{corpus}/dog.wav"], {"split": "test"}, ConfigError, "plain files have no splits"),
        (["{corpus}/dog.wav"], {"modality": "both"}, ConfigError, "has no captions; use --modality audio"),
        (["{empty}"], {}, ManifestError, "no audio files; looked for names that end in .*wav"),
        (["{text}"], {"modality": "audio"}, ConfigError, "holds captions only; use --modality text"),
        (["{text}", "{text}"], {}, ConfigError, "a text file of captions stands alone"),
        (["{blank}"], {}, ManifestError, "holds no caption"),
        (["{binary}"], {}, ManifestError, "cannot be read as UTF-8"),
        (["toy"], {"split": "nope"}, ManifestError, "no clip in split 'nope'"),
        (["toy"], {"window_s": 9.0}, ConfigError, "--window-s 9.0"),
        (["toy"], {"model": "nope"}, RunDirError, "no train run 'nope'"),
    ],
)
def test_input_that_cannot_be_meant_is_refused(run_embed, corpus, tmp_path, addresses, options, error, message):
    (tmp_path / "empty").mkdir()
    for name, content in (("t.txt", b"a dog\n"), ("blank.txt", b"\n \n"), ("binary.txt", b"\xff\xfe\xfa")):
        (tmp_path / name).write_bytes(content)
    places = {
        "corpus": corpus.root,
        "empty": tmp_path / "empty",
        "text": tmp_path / "t.txt",
        "blank": tmp_path / "blank.txt",
        "binary": tmp_path / "binary.txt",
    }
    with pytest.raises(error, match=message):
        run_embed(*[address.format(**places) for address in addresses], **options)


def test_audio_is_the_default_for_data_without_captions(retag):
    silent = retag(lambda clip: {"captions": ()})
    given = embed_input.EmbedInput(silent, has_audio=True, source=None)
    assert embed_input.choose_modality(None, given) == "audio"


def test_a_name_that_cannot_be_kept_is_listed_and_the_rest_embedded(run_embed, corpus, tmp_path, reporter):
    folder = tmp_path / "sounds"
    shutil.copytree(corpus.root, folder, ignore=shutil.ignore_patterns("manifest.jsonl"))
    (folder / "dog.wav").rename(os.fsdecode(os.fsencode(folder) + b"/dog\xff.wav"))
    run_dir, result = run_embed(folder)
    assert (result["counts"], result["num_rejected"]) == ({"audio": 5}, 1)
    item = ascii(f"{folder}/dog\udcff.wav")
    reason = f"{item}: the name is no UTF-8 text without zero bytes, expected a name that can be kept; rename it"
    assert json.loads(run_dir.rejected_path.read_text(encoding="utf-8")) == {"item": item, "reason": reason}
    assert reporter.warned == [f"1 of 6 clips could not be embedded, see rejected.jsonl, first: {reason}"]


def test_names_from_standard_input_that_cannot_be_kept_are_listed(run_embed, corpus, monkeypatch):
    dog, rain = (os.fsencode(corpus.root / name) for name in ("dog.wav", "rain.wav"))
    listing = io.TextIOWrapper(io.BytesIO(dog + b"\nx\xff.wav\nx\xff.wav\n" + rain + b"\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", listing)
    run_dir, result = run_embed("-")
    assert (result["counts"], result["num_rejected"]) == ({"audio": 2}, 1)
    assert json.loads(run_dir.rejected_path.read_text())["item"] == r"'x\udcff.wav'"


@pytest.mark.parametrize("name", ["a\udcff.wav", "a\0.wav"])
def test_a_name_that_cannot_be_kept_is_named_on_one_line(run_embed, monkeypatch, name):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{name}\n"))
    with pytest.raises(
        ManifestError, match=r"'a\\(udcff|x00)\.wav': the name is no UTF-8 text without zero bytes.*; rename it"
    ) as raised:
        run_embed("-")
    str(raised.value).encode()


def test_a_table_says_that_the_model_fused_windows_itself(run_embed, runs_root, attentive, reporter):
    attentive.save(runs_root / "attentive")
    run_dir, _ = run_embed("toy", modality="audio", store="fp32", model=str(runs_root / "attentive"))
    info = read_info(run_dir.path)
    assert info.audio_policy["pool"] == "mean"
    assert info.audio_policy["fusion"] == "attention"
    expected = embed_clips(attentive, Manifest.load(runs_root / "prepare/toy/manifest.jsonl"), reporter=reporter)
    vectors = load_table(run_dir.path, "audio", info=info).vectors
    np.testing.assert_allclose(np.asarray(vectors), expected.vectors, atol=1e-6)
    attentive.window_attention = None
    mean = embed_clips(attentive, Manifest.load(runs_root / "prepare/toy/manifest.jsonl"), reporter=reporter)
    assert np.abs(mean.vectors - expected.vectors)[2:].max() > 1e-4  # clips of several windows
    assert "fusion" not in audio_policy(attentive, EmbedConfig())  # it has lost it


def test_windows_that_are_kept_are_fused_by_nothing(attentive):
    assert audio_policy(attentive, EmbedConfig())["fusion"] == "attention"
    assert "fusion" not in audio_policy(attentive, EmbedConfig(pool="none"))
