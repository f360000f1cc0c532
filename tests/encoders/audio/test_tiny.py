from clapkit.encoders.audio.tiny import build


def test_it_has_a_few_thousand_parameters() -> None:
    assert sum(p.numel() for p in build().parameters()) < 5000
