import io
import struct

import pytest

from clapkit.data.truncation import missing_bytes


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
