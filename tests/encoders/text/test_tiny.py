from clapkit.encoders.text.tiny import build


def test_it_has_a_few_thousand_parameters() -> None:
    assert sum(p.numel() for p in build(captions=["a dog"]).parameters()) < 10_000
