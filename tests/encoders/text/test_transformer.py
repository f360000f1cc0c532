import torch

from clapkit.encoders.text.tiny import build

CAPTIONS = ["a dog is barking", "rain falls on a roof", "a dog barks while rain falls"]


def test_a_sentence_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    tower = build(captions=CAPTIONS).eval()
    together = tower(CAPTIONS)
    alone = torch.cat([tower([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_case_does_not_matter_and_order_of_words_does() -> None:
    torch.manual_seed(0)
    tower = build(captions=CAPTIONS).eval()
    upper, lower, turned = tower(["A Dog, Rain", "a dog, rain", "rain, a dog"])
    assert torch.equal(upper, lower)
    assert (lower - turned).abs().max() > 1e-3


def test_any_text_can_be_encoded() -> None:
    tower = build(captions=CAPTIONS).eval()
    embedded = tower(["", "Ünïcödé 犬の声 🐕", "x" * 500])
    assert torch.isfinite(embedded).all()
