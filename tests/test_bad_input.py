"""What a user gets for input that cannot be used: one line that names the thing, and nothing half-written."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from tokenizers import Tokenizer

from clapkit.data.manifest import Manifest
from clapkit.run_dir import RunDir

RATE = 8000
TINY = ("--audio-encoder", "tiny", "--text-encoder", "tiny", "--embedding-dim", "8", "--workers", "1", "--max-steps", "1")


def write_sound(path: Path, *, key: int = 0, num_frames: int = 800) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(0.01 * (key + 1) * np.arange(num_frames)), RATE)
    return path


@pytest.fixture(autouse=True)
def _here(workplace):
    """Everything happens in an empty folder."""


@pytest.fixture
def fails(clapkit_call):
    """Calls clapkit, makes sure that it fails as it should, and gives the one line."""

    def call(*arguments, stdin=None):
        before = contents(Path("runs"))
        result = clapkit_call(*arguments, stdin=stdin)
        assert result.exit_code == 1, (result.exit_code, result.stderr, result.exception)
        assert isinstance(result.exception, SystemExit)
        assert result.stdout == ""
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert result.stderr.endswith(errors[0] + "\n")
        assert "Traceback" not in result.stderr
        assert len(errors[0]) < 500, len(errors[0])
        after = contents(Path("runs"))
        if "--resume" not in arguments:
            assert before.items() <= after.items()  # earlier runs are untouched
        half_written = {path.name for path in after.keys() - before.keys()} & {"result.json", "manifest.jsonl", "table.json"}
        assert not half_written
        if os.environ.get("CLAPKIT_SHOW_MESSAGES"):
            print(errors[0])
        return errors[0].removeprefix("error: ")

    return call


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def rejection(clapkit_call):
    """Prepares good sounds with a bad one among them, and gives the reason of the one rejected row."""

    def prepare(item: str) -> str:
        for number in range(3):
            write_sound(Path(f"sounds/good/{number}.wav"), key=number)
        result = clapkit_call("prepare", "sounds", "--name", "x", "--workers", "1", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["num_clips"] == 3
        warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: 1 of 4 items rejected")]
        assert len(warnings) == 1
        (row,) = [json.loads(line) for line in Path("runs/prepare/x/rejected.jsonl").read_text().splitlines()]
        assert item in row["item"]
        assert row["reason"] in warnings[0]
        assert "\n" not in row["reason"]
        if os.environ.get("CLAPKIT_SHOW_MESSAGES"):
            print("rejected:", row["item"], "|", row["reason"])
        return row["reason"]

    return prepare


def says(message: str, *parts: str) -> None:
    """The parts come in the message, in this order: the thing, what was found, what was expected, what to do."""
    place = 0
    for part in parts:
        assert part in message[place:], f"{part!r} is not in {message[place:]!r}"
        place = message.index(part, place) + len(part)


# Sounds -----------------------------------------------------------------------------------------------------------------


def empty_file(path):
    path.write_bytes(b"")


def text_file(path):
    path.write_text("This is a shopping list.\n" * 20)


def zero_length(path):
    soundfile.write(path, np.zeros(0), RATE)


def not_a_number(path):
    samples = np.zeros(800, dtype=np.float32)
    samples[300] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def truncated(path):
    whole = path.with_name("whole.flac")
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.1, 20000), RATE)
    path.write_bytes(whole.read_bytes()[:-9000])
    whole.unlink()


BAD_SOUNDS = {
    "empty.wav": (empty_file, ("empty.wav", "is empty (0 bytes)", "expected audio", "drop it")),
    "text.wav": (text_file, ("text.wav", "cannot be read as audio", "expected wav, flac", "drop it")),
    "zero.wav": (zero_length, ("zero.wav", "holds 0 frames", "expected at least 1", "drop it")),
    "nan.wav": (not_a_number, ("nan.wav", "NaN or infinite at frame 300", "expected finite samples", "replace or drop it")),
    "cut.flac": (truncated, ("cut.flac", "truncated")),
}


@pytest.mark.parametrize("name", BAD_SOUNDS)
def test_a_bad_sound_among_good_ones_is_rejected_with_its_reason(name, rejection):
    make, parts = BAD_SOUNDS[name]
    path = Path("sounds/bad", name)
    path.parent.mkdir(parents=True)
    make(path)
    says(rejection(path.stem), *parts)


@pytest.mark.parametrize("name", BAD_SOUNDS)
def test_a_bad_sound_alone_is_an_error(name, fails):
    make, parts = BAD_SOUNDS[name]
    path = Path("sounds", name)
    path.parent.mkdir()
    make(path)
    says(fails("prepare", "sounds"), "no usable clip: 1 of 1 items rejected", *parts)


def test_a_folder_that_cannot_be_read_is_named(fails, monkeypatch):
    write_sound(Path("sounds/a.wav"))
    scandir = os.scandir

    def refuse(path):  # permissions do not stop the administrator, whom tests may run as
        if not isinstance(path, int) and Path(path).name == "sounds":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    says(fails("prepare", "sounds"), "sounds", "cannot be read (Permission denied)", "name another folder")


def test_a_folder_without_sound_is_named(fails):
    Path("sounds").mkdir()
    Path("sounds/notes.txt").write_text("nothing")
    says(fails("prepare", "sounds"), "sounds: no clip found", "expected at least one", "name a folder or table with audio")
    assert not Path("runs/prepare").exists() or not any(Path("runs/prepare").iterdir())


def test_a_source_that_does_not_exist_is_named(fails):
    says(fails("prepare", "./sounds"), "./sounds", "no such file or folder", "expected a folder, a table or a recipe's name")
    says(fails("prepare", "sinth"), "unknown recipe 'sinth'", "did you mean 'synth'?", "or name a folder or a table")


# Tables -----------------------------------------------------------------------------------------------------------------


def table(text: str | bytes, *, num_sounds: int = 2) -> Path:
    for number in range(num_sounds):
        write_sound(Path(f"{number}.wav"), key=number)
    path = Path("captions.csv")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_table_without_a_known_column_lists_what_it_has(fails):
    message = fails("prepare", table("sound,caption\n0.wav,A dog.\n"))
    says(message, "captions.csv", "no audio column", "sound, caption", "expected one of", "-O audio=COLUMN")


def test_a_column_that_does_not_exist_is_named(fails):
    message = fails("prepare", table("audio,caption\n0.wav,A dog.\n"), "-O", "caption=sentence")
    says(message, "captions.csv", "no column 'sentence'", "audio, caption", "correct -O caption=sentence")


def test_an_id_that_comes_twice_is_named_with_both_lines(fails):
    message = fails("prepare", table("id,audio,caption\nx,0.wav,A dog.\nx,1.wav,Rain.\n"))
    says(message, "captions.csv line 3", "'x'", "1.wav", "line 2", "0.wav", "expected unique ids", "correct one")


def test_a_missing_audio_file_is_rejected(clapkit_call):
    path = table("audio,caption\n0.wav,A dog.\ngone.wav,Rain.\n")
    assert clapkit_call("prepare", path, "--name", "x").exit_code == 0
    (row,) = [json.loads(line) for line in Path("runs/prepare/x/rejected.jsonl").read_text().splitlines()]
    assert row["item"] == "captions.csv line 3"
    says(row["reason"], "'gone.wav'", "no such file", "get the file, or set --audio-dir")


def test_an_empty_caption_is_rejected(clapkit_call):
    path = table('audio,caption\n0.wav,A dog.\n1.wav,"  "\n')
    assert clapkit_call("prepare", path, "--name", "x").exit_code == 0
    (row,) = [json.loads(line) for line in Path("runs/prepare/x/rejected.jsonl").read_text().splitlines()]
    assert row["item"] == "captions.csv line 3"
    says(row["reason"], "empty caption", "expected a sentence", "drop the row")


def test_another_encoding_is_named_with_line_and_byte(fails):
    message = fails("prepare", table("audio,caption\n0.wav,Ein H\u00e4hnchen.\n".encode("latin-1")))
    says(message, "captions.csv line 2", "0xe4", "expected text in utf-8", "-O encoding=latin-1")


def test_a_damaged_manifest_is_named_with_its_line(fails, tone_corpus):
    path = tone_corpus()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].replace('"captions"', '"captoins"')]) + "\n")
    says(fails("train", "--data", path, *TINY), "manifest.jsonl", "4", "captoins")


# Amounts ----------------------------------------------------------------------------------------------------------------


def test_one_clip_cannot_be_trained_on(fails, clapkit_call):
    write_sound(Path("sounds/a_dog.wav"))
    assert clapkit_call("prepare", "sounds", "--name", "one").exit_code == 0
    says(fails("train", "--data", "one", *TINY), "val", "train", "1")


def test_data_too_few_for_the_split_are_counted(fails):
    for number in range(2):
        write_sound(Path(f"sounds/{number}_dog.wav"), key=number)
    message = fails("prepare", "sounds", "-O", "val_share=0.3")
    says(message, "not enough data for the split", "2 sources found", "expected at least 3")


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (1, ("--batch-size 1", "needs negatives", "2 or more")),
        (0, ("--batch-size 0", "needs negatives", "2 or more")),
        (17, ("--batch-size 17", "has 16 clips", "--batch-size 16 or less")),
    ],
)
def test_a_batch_that_cannot_be_filled_is_refused(size, parts, fails, tone_corpus):
    says(fails("train", "--data", tone_corpus(), *TINY, "--batch-size", size), *parts)


# Options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--loss", "infonec"), ("unknown loss 'infonec'", "did you mean 'infonce'?", "known: ", "svr")),
        (("--radius", "adaptive"), ("--radius does not apply to --loss infonce", "it belongs to --loss svr")),
        (("--loss", "svr", "-O", "gamma=2"), ("unknown option -O 'gamma'", "known: ", "loss.alpha")),
        (("--val-split", "dev"), ("'dev'", "train")),
        (("--device", "gpu"), ("--device 'gpu'", "expected auto, cpu, cuda")),
        (("--init", "nowhere"), ("no train run 'nowhere'", "looked for run.json in nowhere, runs/train/nowhere")),
        (("--lr", "inf"), ("--lr inf", "expected a finite number")),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(arguments, parts, fails, tone_corpus):
    says(fails("train", "--data", tone_corpus(), *TINY, "--batch-size", "4", *arguments), *parts)
    assert not any(Path("runs").rglob("run.json"))


def test_a_run_directory_in_use_is_not_touched(fails, tone_corpus):
    owner = RunDir.create(Path("runs/train/x"), step="train", config={})
    message = fails("train", "--data", tone_corpus(), *TINY, "--name", "x", "--overwrite")
    says(message, "runs/train/x", f"in use by process {os.getpid()}", "choose another --run-dir")
    owner.release()


def test_a_folder_of_other_files_is_never_overwritten(fails):
    Path("letters").mkdir()
    Path("letters/love.txt").write_text("dear")
    message = fails("prepare", "synth", "-o", "letters", "--overwrite")
    says(message, "letters", "holds files but no run.json", "empty it yourself or choose another --run-dir")
    assert Path("letters/love.txt").read_text() == "dear"


# Models and embeddings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_train(tmp_path_factory, tone_corpus_folder, clapkit_call):
    """A finished train run, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ("--data", tone_corpus_folder, *TINY, "--batch-size", "4", "-o", folder / "x")
    assert clapkit_call("train", *arguments).exit_code == 0
    return folder / "x"


@pytest.fixture(scope="module")
def tone_corpus_folder(tmp_path_factory, clapkit_call):
    folder = tmp_path_factory.mktemp("tones")
    rows = ["audio,caption,split"]
    for number in range(12):
        write_sound(folder / f"{number}.wav", key=number)
        rows.append(f"{number}.wav,tone number {number},{('train', 'train', 'val', 'test')[number % 4]}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    result = clapkit_call("prepare", folder / "t.csv", "-o", folder / "run", "--workers", "1")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.fixture
def trained(finished_train):
    """The run ``x`` under the runs root of this test."""
    shutil.copytree(finished_train, "runs/train/x")
    return Path("runs/train/x")


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors", "objective.safetensors"])
def test_a_corrupt_checkpoint_is_named_and_kept(name, trained, fails):
    (trained / "result.json").unlink()
    (trained / "checkpoints/last" / name).write_bytes(b"garbage")
    message = fails("train", "--resume", "--name", "x")
    says(message, f"checkpoints/last/{name}", "cannot be read", "start again with --overwrite")
    assert (trained / "checkpoints/last" / name).read_bytes() == b"garbage"
    assert RunDir(trained).record["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", b"garbage"), ("config.json", b"{}"), ("config.json", b"\xff")]
)
def test_a_corrupt_model_is_named(name, content, trained, fails):
    (trained / "model" / name).write_bytes(content)
    says(fails("embed"), f"model/{name}", "cannot be", "train")


def test_a_run_that_is_not_finished_is_not_used(trained, fails):
    (trained / "result.json").unlink()
    says(fails("embed", "--model", "x"), "runs/train/x", "is not finished (no result.json)", "--resume")
    says(fails("embed"), "no finished train run under runs/train", "run `clapkit train` first")


def test_a_run_of_another_command_is_not_used(trained, fails, tone_corpus_folder):
    message = fails("embed", "--model", tone_corpus_folder)
    says(message, "run", "is a prepare run", "expected a train run", "name another")


# Weights of others -------------------------------------------------------------------------------------------------------


class _Code:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def another_architecture(folder):
    edit_json(folder / "config.json", {"model_type": "vit"})


def missing_keys(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.0.blocks.0." not in name and ".layer.1." not in name}
    assert len(kept) < len(tensors) - 10
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_with_code(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save({**tensors, "extra": _Code()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def of_another_model(folder):
    """A tokenizer with ids that the model has no embedding for."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    tokenizer.save(str(folder / "tokenizer.json"))


def edit_json(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WRONG = {
    another_architecture: ("wrong", "'vit'"),
    missing_keys: ("wrong", "tensors are missing for Clap", "first", "name the right one"),
    pickle_with_code: ("wrong", "cannot be loaded as Clap", "name a folder"),
    cut_short: ("wrong", "cannot be loaded as Clap", "incomplete metadata", "name a folder"),
    without_weights: ("wrong", "model.safetensors", "name a"),
    of_another_model: ("tokenizer", "has ids up to", "it is another model's tokenizer", "name its own"),
}
CALLS = {
    "--init": ("train", "--init"),
    "--model": ("embed", "--model"),
    "--audio-weights": ("train", "--audio-encoder", "hf", "--text-encoder", "tiny", "--audio-weights"),
    "--text-weights": ("train", "--text-encoder", "hf", "--audio-encoder", "tiny", "--text-weights"),
}


@pytest.mark.parametrize(
    ("spoil", "call"),
    # The audio tower of a model has no tokenizer that could be wrong.
    [(spoil, call) for spoil in WRONG for call in CALLS if (spoil, call) != (of_another_model, "--audio-weights")],
)
def test_weights_that_cannot_be_used_are_named_and_nothing_is_left(
    spoil, call, clap_folder, fails, clapkit_call, tone_corpus_folder
):
    folder = Path(shutil.copytree(clap_folder, "wrong"))
    spoil(folder)
    command, *flags = CALLS[call]
    if command == "embed":
        arguments = ("embed", tone_corpus_folder / "manifest.jsonl", *flags, "wrong")
    else:
        arguments = ("train", "--data", tone_corpus_folder / "manifest.jsonl", "--batch-size", "4", *flags, "wrong")
    message = fails(*arguments)
    says(message, *WRONG[spoil])
    assert not Path("ran").exists()
    assert not any(Path("runs").rglob("*.*"))


@pytest.mark.parametrize("query", ["", "   "])
def test_an_empty_query_is_refused(query, fails):
    says(fails("retrieve", query), "query: is empty", "expected words", "for example `clapkit retrieve")


def test_no_query_at_all_is_refused(fails):
    says(fails("retrieve"), "no query", "give words, --audio, --like, --vectors or --queries")
    Path("q.txt").write_text("\n \n")
    says(fails("retrieve", "--queries", "q.txt"), "--queries q.txt", "holds no query", "expected one per line")
    says(
        fails("retrieve", "--queries", "gone.txt"),
        "--queries gone.txt",
        "cannot be read (No such file or directory)",
        "one query per line",
    )


@pytest.fixture
def embedded(trained, clapkit_call, tone_corpus_folder):
    assert clapkit_call("embed", tone_corpus_folder, "--name", "e", "--workers", "1").exit_code == 0
    return Path("runs/embed/e")


def test_queries_that_a_table_cannot_answer_are_refused(embedded, fails):
    says(fails("retrieve", "dog", "--where", "splt == 'test'"), "--where", "no column 'splt'", "known: ", "split")
    says(fails("retrieve", "dog", "--where", "__import__('os')"), "--where", "is not allowed", "expected comparisons")
    says(fails("retrieve", "dog", "-k", "0"), "-k 0", "expected at least 1")
    says(fails("retrieve", "--audio", "gone.wav"), "--audio", "gone.wav", "cannot be opened")
    says(
        fails("retrieve", "dog", "--embeddings", "f"),
        "no embed run 'f'",
        "looked for run.json in",
        "name a path or a run's name",
    )
    says(fails("retrieve", "dog", "--index", "exat"), "unknown index 'exat'", "did you mean 'exact'?")


def test_a_damaged_table_is_named(embedded, fails):
    vectors = embedded / "audio_emb/audio_emb_0.npy"
    vectors.write_bytes(vectors.read_bytes()[:-100])
    says(fails("retrieve", "dog"), "audio_emb_0.npy")
    (embedded / "table.json").write_text("{")
    says(fails("retrieve", "dog"), "table.json")


def test_a_model_that_is_gone_is_said(embedded, trained, fails):
    shutil.rmtree(trained)
    says(fails("retrieve", "dog"), "runs/embed/e", "model in", "which is gone", "embed again")


def test_a_split_that_does_not_exist_lists_those_that_do(trained, fails):
    says(fails("eval", "--split", "tset"), "'tset'", "test")
    says(fails("eval", "--tasks", "retreival"), "unknown task 'retreival'", "did you mean 'retrieval'?")
    says(fails("eval", "--tasks", "zero-shot"), "no clip has labels", "zero-shot")
    says(fails("eval", "--prompt", "a sound"), "--prompt 'a sound'", "expected exactly one {}")


def test_captions_that_are_no_text_are_refused(trained, fails):
    Path("captions.txt").write_bytes(b"A dog.\n\xe4\xff\n")
    says(fails("embed", "captions.txt", "--modality", "text"), "captions.txt", "cannot be read as UTF-8 (byte 7)", "convert it")
    Path("captions.txt").write_text("\n")
    says(fails("embed", "captions.txt", "--modality", "text"), "captions.txt", "holds no caption")
    says(
        fails("embed", "nothing.wav"),
        "nothing.wav",
        "no such file or folder",
        "looked for run.json in runs/prepare/nothing.wav",
    )
    says(fails("embed", "-", stdin=""), "standard input: is empty", "expected paths of audio files, one per line")


# Shards -----------------------------------------------------------------------------------------------------------------


def test_shards_are_trained_on_and_embedded_in_place_and_refused_once_replaced(fails, clapkit_call, tone_corpus_folder):
    manifest = Manifest.load(tone_corpus_folder / "manifest.jsonl")
    for split in ("train", "val", "test"):
        Path("shards", split).mkdir(parents=True)
        with tarfile.open(Path("shards", split, "0.tar"), "w") as archive:
            for number, clip in enumerate(manifest.split(split)):
                archive.add(manifest.audio_path(clip), f"{number}.wav")
                text = Path("caption.txt")
                text.write_text(clip.captions[0].text)
                archive.add(text, f"{number}.txt")
    for arguments in (
        ("prepare", "webdataset", "shards", "-O", "unpack=false", "--name", "in-place", "--workers", "1"),
        ("train", "--data", "in-place", "--name", "x", *TINY, "--batch-size", "4", "--sampler", "shards"),
        ("embed", "in-place", "--workers", "1"),
    ):
        result = clapkit_call(*arguments)
        assert result.exit_code == 0, result.stderr
    assert not Path("runs/prepare/in-place/audio").exists()
    shorter = write_sound(Path("shorter.wav"), num_frames=700)
    with tarfile.open("shards/train/0.tar", "w") as archive:
        for number in range(len(manifest.split("train"))):
            archive.add(shorter, f"{number}.wav")
    for arguments in (("train", "--data", "in-place", *TINY, "--batch-size", "4"), ("embed", "in-place")):
        says(fails(*arguments), "runs/prepare/in-place", "6 of 12 audio files changed since they were checked", "restore")
