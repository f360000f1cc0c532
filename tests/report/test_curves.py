from pathlib import Path

from clapkit.report.curves import plot_curves


def test_a_png_of_the_right_size_is_written(tmp_path: Path) -> None:
    plot_curves(tmp_path / "a.png", {"loss": [(1, 3.0), (2, 2.0)]}, title="Loss", label="nats")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (840, 480)
