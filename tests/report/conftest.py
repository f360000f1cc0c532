"""What tests of figures look at."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from clapkit.report.canvas import save
from clapkit.report.numbers import Scales


@pytest.fixture
def scales() -> Scales:
    """Ranks are as they are, all else is a fraction."""
    return Scales(lambda name: not name.endswith("MedR"), lambda name: 1)


@pytest.fixture
def pixels(tmp_path: Path) -> Callable[[Any], np.ndarray]:
    """Draws a figure: its pixels, float [height, width, 3]."""

    def draw(canvas: Any) -> np.ndarray:
        save(canvas, tmp_path / "drawn.png")
        return matplotlib.image.imread(io.BytesIO((tmp_path / "drawn.png").read_bytes()))[..., :3]

    return draw


@pytest.fixture
def shows(pixels: Callable[[Any], np.ndarray]) -> Callable[[Any, str], bool]:
    """Whether some pixel of a figure is (nearly) of a colour."""

    def has_color(canvas: Any, color: str) -> bool:
        wanted = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        return bool((np.abs(pixels(canvas) - wanted).max(axis=-1) < 0.12).any())

    return has_color


@pytest.fixture
def words() -> Callable[[Any], list[str]]:
    """All texts of a figure that are not empty, as they will be drawn."""

    def found(canvas: Any) -> list[str]:
        from matplotlib.text import Text

        canvas.draw_without_rendering()
        return [text.get_text() for text in canvas.findobj(Text) if text.get_text()]

    return found
