from clapkit.encoders.text.small import build


def test_it_is_small_and_keeps_its_tokenizer() -> None:
    tower = build(captions=["a dog is barking"])
    assert sum(p.numel() for p in tower.parameters()) < 3_000_000
    again = build(tokenizer=tower.rebuild_options["tokenizer"])
    assert again.rebuild_options["tokenizer"] == tower.rebuild_options["tokenizer"]
