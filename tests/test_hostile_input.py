"""Corpora made by nobody's friend: ``prepare`` says in one line what is wrong, and touches nothing but its run."""

import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names and files that only a POSIX system has")

RATE = 8000
MAX_BYTES = 2 << 30


def write_sound(path, *, key=0, num_frames=800, num_channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(0.01 * (key + 1) * np.arange(num_frames))
    soundfile.write(os.fsencode(path), np.stack([samples] * num_channels, axis=1), RATE)
    return path


@pytest.fixture
def sounds(workplace):
    """A folder with one good sound."""
    write_sound(workplace / "sounds" / "good.wav")
    return workplace / "sounds"


def state(folder):
    """Everything below a folder but the runs: names, kinds, sizes and times of change."""
    found = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if name != b"runs"]
        for name in [*folders, *files]:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            # What is in a folder is looked at by name; its own time changes when runs are made in it.
            found[path] = (status.st_mode,) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def prepare(clapkit_call, workplace):
    """Calls ``clapkit prepare``; gives the clips and the rejected rows, or the one line of the error."""

    def call(*arguments):
        before = state(workplace)
        result = clapkit_call("prepare", *arguments, "--name", "x", "--workers", "1", "--json", "--split", "test")
        assert result.exit_code in (0, 1), (result.exit_code, result.exception)
        assert "Traceback" not in result.stderr
        assert state(workplace) == before
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == result.exit_code
        assert all(line.isprintable() for line in result.stderr.splitlines())
        if errors:
            assert isinstance(result.exception, SystemExit)
            assert len(errors[0]) < 700
            return errors[0]
        run = workplace / "runs" / "prepare" / "x"
        rows = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
        assert all("\n" not in row["reason"] for row in rows)
        clips = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()[1:]]
        assert all("\n" not in line and line.isprintable() for line in result.stderr.splitlines())
        return [clip["id"] for clip in clips], {row["item"]: row["reason"] for row in rows}

    return call


@pytest.fixture(params=["decode", "header"])
def check(request):
    return ("--check", request.param)


# Names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "two\nlines",
        "carriage\rreturn",
        "escape\x1b[31mred",
        "-rf",
        "--strict",
        "$(reboot)",
        "a'b\"c",
        "<script>alert(1)</script>".replace("/", "\u2215"),
        "{} {0} %s",
        "back\\slash",
        "\u202eevil",
        "\u00e9",
        "e\u0301",
        " blank ",
        "x" * 251,
        "\u00e4" * 125,
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--cache-audio", "flac")])
def test_a_name_that_a_file_system_allows_is_a_name(prepare, sounds, name, arguments):
    write_sound(sounds / f"{name}.wav", key=1)
    clips, rejected = prepare("sounds", *arguments)
    assert sorted(clips) == sorted(["good", name])
    assert rejected == {}


@pytest.mark.parametrize("arguments", [(), ("--cache-audio", "flac"), ("--export", "webdataset"), ("--check", "header")])
def test_a_name_that_is_not_utf8_is_refused_readably(prepare, sounds, arguments):
    write_sound(Path(os.fsdecode(os.fsencode(sounds) + b"/\xff\xfe.wav")), key=1)
    clips, rejected = prepare("sounds", *arguments)
    assert clips == ["good"]
    ((item, reason),) = rejected.items()
    assert item.isprintable()
    assert "not valid UTF-8" in reason


def test_a_folder_name_that_is_not_utf8_is_refused_readably(prepare, sounds):
    write_sound(Path(os.fsdecode(os.fsencode(sounds) + b"/\xff/a.wav")), key=1)
    clips, rejected = prepare("sounds")
    assert clips == ["good"]
    assert len(rejected) == 1


def test_a_table_that_names_a_surrogate_is_refused_readably(prepare, sounds):
    (sounds / "t.jsonl").write_text('{"audio": "good.wav", "caption": "A."}\n{"audio": "\\ud800.wav", "caption": "B."}\n')
    answer = prepare(sounds / "t.jsonl")
    assert isinstance(answer, str) or answer[0] == ["good"]


def test_captions_with_surrogates_and_null_characters_leave_no_damaged_manifest(prepare, sounds):
    (sounds / "t.jsonl").write_text('{"audio": "good.wav", "caption": "A \\ud800 b\\u0000c\\u2028d."}\n')
    answer = prepare(sounds / "t.jsonl")
    assert isinstance(answer, str) or answer[0] in ([], ["good"])


# Things that are no files -----------------------------------------------------------------------------------------------


def test_pipes_devices_and_broken_links_are_refused_and_not_read(prepare, sounds, check):
    os.mkfifo(sounds / "pipe.wav")
    (sounds / "device.wav").symlink_to("/dev/zero")
    (sounds / "loop.wav").symlink_to("loop.wav")
    (sounds / "nowhere.wav").symlink_to("gone.wav")
    (sounds / "folder.wav").mkdir()
    (sounds / "around").symlink_to(".")
    clips, rejected = prepare("sounds", *check)
    assert clips == ["good"]
    assert rejected.keys() == {"pipe", "device.wav", "loop", "nowhere", "around"}
    assert "no regular file" in rejected["pipe"]


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/", ".", "..", "pipe.wav", "loop.wav"])
def test_a_table_that_names_something_else_than_a_file_is_refused(prepare, sounds, check, name):
    os.mkfifo(sounds / "pipe.wav")
    (sounds / "loop.wav").symlink_to("loop.wav")
    (sounds / "t.csv").write_text(f"audio,caption\ngood.wav,Good.\n{name},Bad.\n")
    clips, rejected = prepare(sounds / "t.csv", *check)
    assert clips == ["good"]
    assert len(rejected) == 1


# Paths that leave their folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--cache-audio", "flac"), ("--cache-audio", "wav", "--cache-rate", "4000")])
def test_relative_paths_may_not_leave_the_root_and_absolute_ones_may(prepare, sounds, workplace, arguments):
    write_sound(workplace / "outside" / "above.wav", key=1)
    absolute = write_sound(workplace / "elsewhere.wav", key=2)
    paths = ["../outside/above.wav", absolute, "../sounds/good.wav", "x/../../outside/above.wav"]
    (sounds / "t.csv").write_text("audio,caption\n" + "".join(f"{path},A.\n" for path in paths))
    clips, rejected = prepare(sounds / "t.csv", *arguments)
    assert clips == [str(absolute.with_suffix(""))]
    assert rejected.keys() == {"t.csv line 2", "t.csv line 4", "t.csv line 5"}
    assert all("leaves the audio folder" in reason for reason in rejected.values())
    if arguments:
        (copy,) = (path for path in (workplace / "runs/prepare/x/decoded").rglob("*") if path.is_file())
        assert copy.parent.name == "decoded"


def test_one_file_under_two_names_is_copied_for_both(prepare, sounds):
    (sounds / "t.csv").write_text("audio,caption\ngood.wav,A.\n./good.wav,B.\n.//good.wav,C.\n")
    clips, rejected = prepare(sounds / "t.csv", "--cache-audio", "flac")
    assert rejected == {}
    assert 1 <= len(clips) <= 3


def test_a_copy_that_would_be_a_folder_and_a_file_is_no_crash(prepare, sounds):
    write_sound(sounds / "good.wav.flac" / "inner.wav", key=1)
    answer = prepare("sounds", "--cache-audio", "flac")
    assert isinstance(answer, str) or answer[0]


@pytest.mark.parametrize("arguments", [("--export", "webdataset"), ("--export", "hf")])
def test_exports_of_odd_ids_stay_inside_the_run(prepare, sounds, workplace, arguments):
    for key, name in enumerate(("a", "b", "c"), start=1):
        write_sound(sounds / f"{name}.wav", key=key)
    rows = ["good.wav,Good,good", "a.wav,A,../../../evil", "b.wav,B,/etc/passwd", 'c.wav,C,"con\naux"']
    (sounds / "t.csv").write_text("audio,caption,id\n" + "".join(f"{row}\n" for row in rows))
    answer = prepare(sounds / "t.csv", *arguments)
    assert not isinstance(answer, str)


@pytest.mark.parametrize("split", ["../../evil", "/tmp/evil", "..", "a/b", "x" * 300])
def test_exports_of_odd_splits_stay_inside_the_run(clapkit_call, sounds, workplace, split):
    (sounds / "t.csv").write_text(f"audio,caption,split\ngood.wav,Good.,{split}\n")
    before = state(workplace.parent)
    result = clapkit_call("prepare", sounds / "t.csv", "--name", "x", "--export", "webdataset", "--json")
    assert result.exit_code in (0, 1), (result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    assert state(workplace.parent) == before


# Headers that lie -------------------------------------------------------------------------------------------------------


def wav_bytes(*, num_channels=1, claimed=800, data=b"\0" * 800, rate=RATE):
    frame = num_channels * 2
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, num_channels & 0xFFFF, rate,
                         (rate * frame) & 0xFFFFFFFF, frame & 0xFFFF, 16)  # fmt: skip
    return header + struct.pack("<4sI", b"data", claimed) + data


def flac_bytes(num_frames):
    """A FLAC header that promises frames (36 bits of them), and nothing behind it."""
    packed = (44100 << 44) | (0 << 41) | (15 << 36) | num_frames
    info = struct.pack(">HH", 4096, 4096) + b"\0" * 6 + struct.pack(">Q", packed) + b"\0" * 16
    return b"fLaC" + struct.pack(">I", 0x80000000 | len(info)) + info


def w64_bytes():
    riff = bytes.fromhex("726966662e91cf11a5d628db04c10000") + struct.pack("<Q", 1 << 42)
    wave = bytes.fromhex("77617665f3acd3118cd100c04f8edb8a")
    fmt = bytes.fromhex("666d7420f3acd3118cd100c04f8edb8a") + struct.pack("<QHHIIHH", 40, 1, 1, RATE, RATE * 2, 2, 16)
    data = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a") + struct.pack("<Q", 1 << 42)
    return riff + wave + fmt + data + b"\0" * 100


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.wav", wav_bytes(claimed=0xFFFFFFF0)),
        ("a.wav", wav_bytes(claimed=0xFFFFFFFF, data=b"")),
        ("a.wav", wav_bytes(rate=0)),
        ("a.wav", wav_bytes(rate=0x7FFFFFFF)),
        ("a.wav", wav_bytes(num_channels=0)),
        ("a.flac", flac_bytes((1 << 36) - 1)),
        ("a.flac", flac_bytes(0)),
        ("a.w64", w64_bytes()),
        ("a.wav", b"RIFF"),
        ("a.wav", b"RIFF" * 1000),
        ("a.ogg", b"OggS" + b"\xff" * 5000),
        ("a.mp3", b"\xff\xfb\x90\x00" * 3),
        ("a.mp3", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + b"\0" * 100),
        ("a.aiff", b"FORM\xff\xff\xff\xffAIFFCOMM\xff\xff\xff\xff"),
        ("a.caf", b"caff\x00\x01\x00\x00desc\x7f\xff\xff\xff\xff\xff\xff\xff"),
        ("a.au", b".snd" + struct.pack(">IIIII", 24, 0xFFFFFFFE, 3, RATE, 1)),
        ("a.voc", b"Creative Voice File\x1a\x1a\x00\x0a\x01\x29\x11" + b"\xff" * 50),
    ],
)
def test_a_header_that_lies_is_refused_without_believing_it(prepare, sounds, check, name, content):
    (sounds / name).write_bytes(content)
    answer = prepare("sounds", *check)
    assert not isinstance(answer, str)
    clips, rejected = answer
    assert "good" in clips
    assert len(clips) + len(rejected) == 2
    if check[1] == "decode":
        report = json.loads(Path("runs/prepare/x/report.json").read_text())
        # Writers that cannot seek claim the largest length there is: such files are taken for what they hold, and named.
        assert "a" in rejected or report["checks"]["wrong_header"]["items"] == ["a"]


# Size -------------------------------------------------------------------------------------------------------------------

LIMITED = """
import pathlib, re, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
from clapkit.cli import main
sys.argv = ["clapkit", *sys.argv[1:]]
try:
    main()
finally:
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts at what the parent had
        peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1]) * 1024
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stderr.write(f"peak {peak}\\n")
"""


def peak_bytes(*arguments):
    """Call ``clapkit prepare`` in a process of its own; gives the most memory that it used, and what it said."""
    call = [sys.executable, "-c", LIMITED, "prepare", *map(str, arguments), "--name", "x", "--workers", "1", "--split", "test"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    *lines, last = done.stderr.splitlines()
    return int(last.removeprefix("peak ")), [line for line in lines if line.startswith(("warning: ", "error: "))]


@pytest.mark.parametrize("num_channels", [1024, 10_000])
@pytest.mark.parametrize("arguments", [(), ("--cache-audio", "flac", "--cache-rate", "4000"), ("--check", "header")])
def test_a_file_of_many_channels_is_read_or_refused(prepare, sounds, num_channels, arguments):
    frames = 400
    data = (np.random.default_rng(0).normal(0, 3000, (frames, num_channels))).astype("<i2").tobytes()
    (sounds / "wide.wav").write_bytes(wav_bytes(num_channels=num_channels, claimed=len(data), data=data))
    clips, rejected = prepare("sounds", *arguments)
    assert len(clips) + len(rejected) == 2
    assert ("wide" in clips) == (num_channels == 1024)


@pytest.mark.slow
def test_hours_of_silence_do_not_fill_the_memory(sounds):
    with soundfile.SoundFile(sounds / "night.flac", "w", 48000, 2) as file:
        for _ in range(2 * 60):
            file.write(np.zeros((60 * 48000, 2), np.int16))
    assert (sounds / "night.flac").stat().st_size < 10_000_000
    peak, _ = peak_bytes("sounds")
    base, _ = peak_bytes("sounds", "--check", "header", "--overwrite")
    # Two hours of stereo are 2.8 GB as floats; the page shows a minute of them.
    assert peak < base + (400 << 20), (peak >> 20, base >> 20)
    lines = Path("runs/prepare/x/manifest.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_a_sparse_file_of_hours_is_refused_or_read_in_bounded_memory(sounds):
    path = sounds / "sparse.wav"
    path.write_bytes(wav_bytes(claimed=200 << 20, data=b""))
    os.truncate(path, 44 + (200 << 20))
    peak, said = peak_bytes("sounds")
    # 200 MB of 16 bits are 400 MB as floats.
    assert peak < 350 << 20, peak >> 20
    assert any("silent clips: 1, first: sparse" in line for line in said)


def test_a_cell_of_fifty_megabytes_is_refused_or_read_in_bounded_memory(sounds):
    (sounds / "t.csv").write_text("audio,caption\ngood.wav," + "word " * 10_000_000 + "\n")
    peak, said = peak_bytes(sounds / "t.csv")
    assert peak < MAX_BYTES, peak >> 20
    assert all(len(line) < 2000 for line in said)


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("opening", ["[", '{"a":', '{"data": [{"audio": "good.wav", "caption": '])
def test_json_that_is_nested_too_deeply_is_refused(prepare, sounds, name, opening):
    (sounds / name).write_text(opening * 100_000)
    answer = prepare(sounds / name)
    assert isinstance(answer, str)
    assert name in answer


def test_a_nested_caption_is_refused_in_its_row(prepare, sounds):
    nested = "[" * 400 + "]" * 400
    (sounds / "t.jsonl").write_text(f'{{"audio": "good.wav", "caption": {nested}}}\n{{"audio": "good.wav", "caption": "A."}}\n')
    clips, rejected = prepare(sounds / "t.jsonl")
    assert clips == ["good"]
    assert all(len(reason) < 500 for reason in rejected.values())


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "1" * 5000, "0x10", "１", "-0.0", "1e-320"])
def test_a_number_that_is_none_is_refused_in_its_row(prepare, sounds, number):
    (sounds / "t.csv").write_text(f"audio,caption,end_s\ngood.wav,A.,{number}\ngood.wav,B.,\n")
    answer = prepare(sounds / "t.csv")
    assert isinstance(answer, str) or "good" in answer[0]


def test_folders_inside_each_other_without_end_are_walked_or_refused(clapkit_call, sounds):
    here = os.open(sounds, os.O_RDONLY)
    folder = here
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        deeper = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(folder)
    try:
        result = clapkit_call("prepare", "sounds", "--name", "x", "--split", "test")
    finally:
        subprocess.run(["rm", "-rf", sounds / "d"], check=True)  # deeper than Python can delete
    assert result.exit_code in (0, 1), result.exception
    assert isinstance(result.exception, SystemExit | None)
    assert "Traceback" not in result.stderr
