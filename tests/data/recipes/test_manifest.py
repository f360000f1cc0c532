from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, RecipeRequest, Rejection, SilentReporter

CLIPS = (
    Clip(id="a", audio="x/a.wav", duration_s=1.0, captions=(Caption("Ein Hund.", "de"),), split="dev", extra={"k": 1}),
    Clip(id="a@0-1", audio="x/a.wav", duration_s=0.5, start_s=0.0, end_s=0.5, fold=3, source="rec", labels=("dog",)),
)


def run(folder: Path, *, root: Path, clips: tuple[Clip, ...] = CLIPS) -> Path:
    for clip in clips:
        (root / clip.audio).parent.mkdir(parents=True, exist_ok=True)
        (root / clip.audio).write_bytes(b"")
    folder.mkdir(parents=True, exist_ok=True)
    Manifest.write(folder / "manifest.jsonl", clips, root=root, name="corpus")
    return folder


def read(source: Path, **changes: Any) -> list[Clip | Rejection]:
    values: dict[str, Any] = {"audio_dir": None, "seed": 0, "workers": 1, "reporter": SilentReporter()}
    request = RecipeRequest(source=source, output_dir=source.parent / "out", **(values | changes))
    return list(registry.build("recipe", "manifest").clips(request))


@pytest.mark.parametrize("name", [".", "manifest.jsonl"])
def test_clips_beside_their_manifest_come_back_unchanged(tmp_path: Path, name: str) -> None:
    folder = run(tmp_path / "run", root=tmp_path / "run")
    assert read(folder / name) == list(CLIPS)


@pytest.mark.parametrize("place", ["corpus", "run/audio"])
def test_clips_whose_audio_lies_elsewhere_come_back_unchanged_and_the_root_with_them(tmp_path: Path, place: str) -> None:
    folder = run(tmp_path / "run", root=tmp_path / place)
    assert read(folder) == list(CLIPS)
    recipe = registry.build("recipe", "manifest")
    assert recipe.find_root(folder).absolute() == tmp_path / place
    assert recipe.corpus_name == "corpus"


def test_relative_paths_start_at_the_audio_folder_that_is_named(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", root=tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert [item.kind for item in read(folder) if isinstance(item, Rejection)] == ["missing", "missing"]
    assert read(folder, audio_dir=tmp_path / "new") == list(CLIPS)


def test_audio_that_is_gone_is_missing_with_its_split(tmp_path: Path) -> None:
    other = Clip(id="b", audio="b.wav", duration_s=1.0, split="test")
    folder = run(tmp_path / "run", root=tmp_path / "run", clips=(*CLIPS, other))
    (folder / "b.wav").unlink()
    *found, missing = read(folder)
    assert found == list(CLIPS)
    assert isinstance(missing, Rejection)
    assert (missing.item, missing.kind, missing.split) == ("b", "missing", "test")


def test_the_manifest_is_named_and_its_splits_counted(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", root=tmp_path / "run")
    recipe = registry.build("recipe", "manifest")
    request = RecipeRequest(source=folder, audio_dir=None, output_dir=tmp_path, seed=0, workers=1, reporter=SilentReporter())
    description = recipe.describe(list(recipe.clips(request)))
    assert description.official == {"dev": 1}
    assert description.facts == {"manifest": "corpus", "fingerprint": Manifest.load(folder / "manifest.jsonl").fingerprint}


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no manifest.jsonl, expected a run of prepare or its manifest"):
        read(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("{}")
    with pytest.raises(ManifestError, match="no header"):
        read(tmp_path)
