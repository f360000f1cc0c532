import io
import struct

import numpy as np
import pytest
import soundfile

from clapkit.data.truncation import flac_ends_early, look_at_length


def missing_bytes(file: io.BytesIO) -> tuple[int, int] | None:
    return look_at_length(file, len(file.getvalue()))[0]


def length_problem(file: io.BytesIO) -> str | None:
    return look_at_length(file, len(file.getvalue()))[1] or None


def wav(claimed: int, found: int, *, order: str = "<", extra: bytes = b"") -> io.BytesIO:
    magic = b"RIFF" if order == "<" else b"RIFX"
    fmt = b"fmt " + struct.pack(order + "I", 16) + bytes(16)
    return io.BytesIO(magic + bytes(4) + b"WAVE" + fmt + extra + b"data" + struct.pack(order + "I", claimed) + bytes(found))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_wav_that_ends_early_gives_both_numbers(order: str) -> None:
    assert missing_bytes(wav(100, 60, order=order)) == (60, 100)
    assert missing_bytes(wav(100, 100, order=order)) is None


def test_chunks_before_the_data_are_passed_over_with_their_padding() -> None:
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    assert missing_bytes(wav(100, 60, extra=odd)) == (60, 100)


def test_bytes_behind_the_data_are_no_matter() -> None:
    assert missing_bytes(wav(100, 130)) is None


@pytest.mark.parametrize("claimed", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_length_that_a_writer_to_a_pipe_left_open_is_no_claim(claimed: int) -> None:
    assert missing_bytes(wav(claimed, 60)) is None


def test_a_wav_cut_inside_its_header_is_left_to_the_decoder() -> None:
    assert missing_bytes(io.BytesIO(wav(100, 0).getvalue()[:30])) is None


def ogg_page(payload: bytes) -> bytes:
    segments = bytes([255] * (len(payload) // 255) + [len(payload) % 255])
    return b"OggS\0" + bytes(21) + bytes([len(segments)]) + segments + payload


def test_an_ogg_file_is_whole_when_its_last_page_is() -> None:
    content = ogg_page(bytes(300)) + ogg_page(bytes(1000))
    assert missing_bytes(io.BytesIO(content)) is None
    # The last page has 27 bytes of header, 4 segments (255 + 255 + 255 + 235) and 1000 bytes of payload.
    assert missing_bytes(io.BytesIO(content[:-1])) == (1030, 1031)
    assert missing_bytes(io.BytesIO(content[:-1011])) == (20, 27)


def test_other_formats_make_no_claim_that_is_checked_here() -> None:
    assert missing_bytes(io.BytesIO(b"fLaC" + bytes(100))) is None
    assert missing_bytes(io.BytesIO(b"")) is None


def caf(claimed: int, found: int) -> io.BytesIO:
    return io.BytesIO(
        b"caff" + bytes(4) + b"desc" + struct.pack(">q", 32) + bytes(32) + b"data" + struct.pack(">q", claimed) + bytes(found)
    )


def test_a_caf_that_ends_early_gives_both_numbers() -> None:
    assert missing_bytes(caf(100, 60)) == (60, 100)
    assert missing_bytes(caf(100, 100)) is None
    assert missing_bytes(caf(-1, 60)) is None


# Odd lengths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_length_that_is_as_claimed_is_no_problem(order: str) -> None:
    assert length_problem(wav(100, 100, order=order)) is None
    info = b"LIST" + struct.pack(order + "I", 2000) + bytes(2000)
    assert length_problem(io.BytesIO(wav(101, 102, order=order).getvalue() + info)) is None


@pytest.mark.parametrize("claimed", [0x7FFFF000, 0xFFFFFFFF])
def test_a_length_that_is_left_open_is_a_problem(claimed: int) -> None:
    assert "leaves the length open" in (length_problem(wav(claimed, 60)) or "")


def test_audio_behind_the_claimed_end_is_a_problem() -> None:
    # 513 bytes follow; 512, or 1 % of 100,000 = 1000, are let pass.
    assert "claims 100 bytes of audio, 513 bytes follow" in (length_problem(wav(100, 613)) or "")
    assert length_problem(wav(100, 612)) is None
    assert length_problem(wav(100_000, 101_000)) is None
    assert length_problem(wav(100_000, 101_001)) is not None


def test_an_ogg_stream_must_end_with_a_page_that_says_so() -> None:
    page = bytearray(ogg_page(bytes(300)))
    assert "not marked as the last" in (length_problem(io.BytesIO(page)) or "")
    page[5] = 4
    assert length_problem(io.BytesIO(page)) is None


@pytest.mark.parametrize("content", [b"", b"OggS", b"fLaC" + bytes(100), b"RIFF", b".snd"])
def test_what_makes_no_claim_has_no_problem_with_it(content: bytes) -> None:
    assert length_problem(io.BytesIO(content)) == (
        "its last Ogg page is not marked as the last, it may be cut" if content == b"OggS" else None
    )


# FLAC -------------------------------------------------------------------------------------------------------------------


def flac(num_frames: int, num_channels: int = 1) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (num_frames, num_channels))
    stream = io.BytesIO()
    soundfile.write(stream, samples, 44100, format="FLAC")
    return stream.getvalue()


def ends_early(content: bytes) -> bool:
    return flac_ends_early(io.BytesIO(content))


@pytest.mark.parametrize("num_frames", [1, 100, 4096, 4097, 30000])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_whole_flac_does_not_end_early(num_frames: int, num_channels: int) -> None:
    assert not ends_early(flac(num_frames, num_channels))


@pytest.mark.parametrize("num_bytes", [1, 2, 100, 5000, 20000])
def test_a_flac_that_lacks_bytes_at_its_end_ends_early(num_bytes: int) -> None:
    assert ends_early(flac(30000)[:-num_bytes])


def test_a_flac_that_was_cut_between_frames_ends_early() -> None:
    whole = flac(30000)  # 7 blocks of 4096, the last has 1328
    first_of_last = whole.rfind(b"\xff\xf8")
    while not ends_early(whole[:first_of_last]) or whole[first_of_last + 4] != 7:
        first_of_last = whole.rfind(b"\xff\xf8", 0, first_of_last)
    assert ends_early(whole[:first_of_last])


def test_a_flac_that_promises_more_than_its_last_frame_ends_early() -> None:
    content = bytearray(flac(30000))
    content[22:26] = (90000).to_bytes(4)
    assert ends_early(bytes(content))


def test_a_flac_with_damage_in_the_middle_does_not_end_early() -> None:
    content = bytearray(flac(30000))
    content[20000:20050] = bytes(50)
    assert not ends_early(bytes(content))


def test_what_is_no_flac_does_not_end_early() -> None:
    assert not ends_early(b"")
    assert not ends_early(b"fLaC")
    assert not ends_early(b"RIFF" + bytes(100))
