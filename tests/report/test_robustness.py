import numpy as np

from clapkit.report.robustness import draw_robustness


def point(change: str, severity: float | str, value: float) -> dict:
    return {"change": change, "severity": severity, "unit": "dB", "metrics": {"t2a_R@1": value}}


def test_every_change_has_a_panel_with_a_line_per_run_and_what_was_without_it(words) -> None:
    runs = [[point("white_noise", 20, 0.4), point("white_noise", 0, 0.1), point("mp3", "low", 0.3)], [point("mp3", "low", 0.2)]]
    canvas = draw_robustness(["a", "b"], runs, metric="t2a_R@1", clean=[0.5, None], title="T")
    noise, mp3 = canvas.axes
    dashed, line = noise.lines
    assert np.allclose(dashed.get_ydata(), 50)
    assert [list(line.get_xdata()), list(line.get_ydata())] == [[0, 1], [40, 10]]  # in the order given, percent
    assert [list(line.get_ydata()) for line in mp3.lines if line.get_linestyle() != "--"] == [[30], [20]]
    assert {"white noise", "mp3", "20", "low", "dB", "unchanged", "a", "b"} <= set(words(canvas))


def test_a_metric_that_a_change_lacks_has_no_panel() -> None:
    runs = [[point("gain", 6, 0.4), {"change": "speed", "severity": 2, "unit": "", "metrics": {"accuracy": 1.0}}]]
    canvas = draw_robustness(["a"], runs, metric="t2a_R@1", clean=[None], title="T")
    assert len(canvas.axes) == 1
    assert canvas.legends == []
