import json
import os
from pathlib import Path

import pytest

from clapkit.data.audio import AudioInfo
from clapkit.data.inspection import Inspection, Job, inspect
from clapkit.steps.inspection_journal import InspectionJournal


@pytest.fixture
def job(tmp_path: Path, tones: Path) -> Job:
    path = tmp_path / "a.wav"
    path.write_bytes((tones.parent / "audio" / "train-1.wav").read_bytes())
    return Job(str(path))


def reopened(journal: InspectionJournal) -> InspectionJournal:
    journal.close()
    return InspectionJournal(journal.path)


def test_what_was_noted_is_found_again_exactly(tmp_path: Path, job: Job) -> None:
    journal = InspectionJournal(tmp_path / "journal")
    found = inspect(job)
    journal.add(job, found)
    again = reopened(journal).find(job)
    assert again == found
    assert again is not None
    assert again.landmarks == found.landmarks
    assert again.info is not None
    assert again.info.format == "WAV"


def test_a_bad_file_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    job = Job(str(tmp_path / "a.wav"))
    journal = InspectionJournal(tmp_path / "journal")
    journal.add(job, inspect(job))
    again = reopened(journal).find(job)
    assert again is not None
    assert again.check == "unreadable"


def test_a_file_that_changed_is_not_known(tmp_path: Path, job: Job) -> None:
    journal = InspectionJournal(tmp_path / "journal")
    journal.add(job, inspect(job))
    os.utime(job.path, ns=(1, 1))
    assert reopened(journal).find(job) is None
    os.unlink(job.path)
    assert reopened(journal).find(job) is None


def test_a_copy_that_is_gone_is_made_again(tmp_path: Path, job: Job) -> None:
    (tmp_path / "copy.flac").write_bytes(b"...")
    copied = Job(job.path, str(tmp_path / "copy.flac"))
    journal = InspectionJournal(tmp_path / "journal")
    journal.add(copied, Inspection(info=AudioInfo(8000, 8, 1), copy=AudioInfo(8000, 8, 1)))
    assert reopened(journal).find(copied) is not None
    (tmp_path / "copy.flac").unlink()
    assert reopened(journal).find(copied) is None


def test_a_line_that_was_cut_off_does_not_count_and_is_written_over(tmp_path: Path, job: Job) -> None:
    other = Job(str(tmp_path / "b.wav"))
    (tmp_path / "b.wav").write_bytes(Path(job.path).read_bytes())
    journal = InspectionJournal(tmp_path / "journal")
    journal.add(job, inspect(job))
    journal.add(other, inspect(other))
    journal.close()
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-20])
    cut = InspectionJournal(journal.path)
    assert cut.find(job) is not None
    assert cut.find(other) is None
    cut.add(other, inspect(other))
    cut.close()
    assert journal.path.read_bytes() == content


def test_a_path_that_is_not_utf8_can_be_noted(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n.wav"
    Path(os.fsdecode(path)).write_bytes(b"")
    job = Job(os.fsdecode(path))
    journal = InspectionJournal(tmp_path / "journal")
    journal.add(job, inspect(job))
    assert reopened(journal).find(job) == inspect(job)
    assert len([json.loads(line) for line in journal.path.read_text().splitlines()]) == 1


def test_discarding_deletes_the_file(tmp_path: Path, job: Job) -> None:
    journal = InspectionJournal(tmp_path / "journal")
    journal.discard()  # before anything was written
    journal.add(job, inspect(job))
    journal.discard()
    assert not journal.path.exists()
