from clapkit.encoders.text.light import build


def test_it_is_light_and_keeps_its_tokenizer() -> None:
    tower = build(captions=["a dog is barking"])
    assert sum(p.numel() for p in tower.parameters()) < 500_000
    assert (
        build(tokenizer=tower.rebuild_options["tokenizer"]).rebuild_options["tokenizer"] == tower.rebuild_options["tokenizer"]
    )
