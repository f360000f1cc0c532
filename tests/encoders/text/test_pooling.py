import json

import pytest
import torch

from clapkit.encoders.text._pooling import mean_of_pieces, pool, read_sentence_length, read_sentence_transformer
from clapkit.errors import CheckpointError

STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [90.0, 90.0]], [[5.0, 1.0], [7.0, 1.0], [0.0, 4.0]]])
REAL = torch.tensor([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        # (1 + 3) / 2 and (2 + 6) / 2; (5 + 7 + 0) / 3 and (1 + 1 + 4) / 3.
        ("mean", [[2.0, 4.0], [4.0, 2.0]]),
        ("cls", [[1.0, 2.0], [5.0, 1.0]]),
        ("last", [[3.0, 6.0], [0.0, 4.0]]),
    ],
)
def test_tokens_become_one_vector(pooling, expected) -> None:
    assert pool(STATES, REAL, pooling).tolist() == expected


def test_the_mean_is_that_of_sentence_transformers() -> None:
    states, lengths = torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 9, 5, 3, 8])
    real = torch.arange(9) < lengths[:, None]
    # As sentence-transformers defines it: the mask is spread over the width, and the sum of it kept away from zero.
    spread = real.unsqueeze(-1).expand(states.shape).float()
    expected = (states * spread).sum(1) / spread.sum(1).clamp(min=1e-9)
    assert torch.equal(pool(states, real, "mean"), expected)


def test_pieces_become_one_vector_by_their_tokens_and_not_by_their_lengths() -> None:
    vectors = torch.tensor([[3.0, 0.0], [0.0, 10.0], [0.6, 0.8], [5.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    means = mean_of_pieces(vectors, [2, 1, 3], [3, 4, 9, 1, 1, 2])
    # 3 (1, 0) + 4 (0, 1), of length 5; lengths (3 * 3 + 4 * 10) / 7 = 7.
    torch.testing.assert_close(means[0], torch.tensor([7 * 0.6, 7 * 0.8]))
    assert torch.equal(means[1], vectors[2])
    # (1, 0) + (0, 1) + 2 (1, 0) = (3, 1), of length sqrt(10); lengths (5 + 1 + 2) / 4 = 2.
    torch.testing.assert_close(means[2], torch.tensor([3.0, 1.0]) * 2 / 10**0.5)


def test_the_mean_of_pieces_has_a_gradient_for_every_piece() -> None:
    vectors = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mean_of_pieces(x, [1, 4], [2, 1, 3, 2, 5]), vectors)


def folder_with(tmp_path, *, kinds=("Transformer", "Pooling"), pooling=None, prompts=None):
    modules = [
        {"path": "1_Pooling" if kind == "Pooling" else "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    if prompts:
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return tmp_path


def test_an_ordinary_folder_says_nothing(tmp_path) -> None:
    assert read_sentence_transformer(tmp_path) == (None, [])
    assert read_sentence_length(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_both_forms_of_the_pooling_file_are_read(config, expected, tmp_path) -> None:
    assert read_sentence_transformer(folder_with(tmp_path, pooling=config)) == (expected, [])


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["mean", "max"]}, r"\['mean', 'max'\]"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        ({"word_embedding_dimension": 4}, "nothing"),
    ],
)
def test_another_pooling_is_refused_with_the_reason(config, found, tmp_path) -> None:
    with pytest.raises(
        CheckpointError, match=f"config.json: pools by {found}, expected one of mean, cls, lasttoken; give pooling="
    ):
        read_sentence_transformer(folder_with(tmp_path, pooling=config))


def test_what_is_left_out_is_noted(tmp_path) -> None:
    folder = folder_with(tmp_path, kinds=("Transformer", "Pooling", "Normalize"), prompts={"default_prompt_name": "query"})
    pooling, notes = read_sentence_transformer(folder)
    assert pooling == "mean"
    assert [("unit norm" in note, "prompt" in note) for note in notes] == [(True, False), (False, True)]


@pytest.mark.parametrize("kind", ["Dense", "LSTM", "Router"])
def test_a_module_that_is_not_applied_is_refused(kind, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=f"has a module {kind} behind the tower, which is not applied"):
        read_sentence_transformer(folder_with(tmp_path, kinds=("Transformer", "Pooling", kind)))


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]"])
def test_a_damaged_list_of_modules_is_named(text, tmp_path) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match="modules.json: .*restore the file"):
        read_sentence_transformer(tmp_path)


def test_a_missing_pooling_file_is_named(tmp_path) -> None:
    (folder_with(tmp_path) / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="1_Pooling/config.json: cannot be read"):
        read_sentence_transformer(tmp_path)


def test_the_length_is_read_and_lower_case_refused(tmp_path) -> None:
    path = tmp_path / "sentence_bert_config.json"
    path.write_text('{"max_seq_length": 128, "do_lower_case": false}')
    assert read_sentence_length(tmp_path) == 128
    path.write_text('{"max_seq_length": null}')
    assert read_sentence_length(tmp_path) is None
    path.write_text('{"max_seq_length": 128, "do_lower_case": true}')
    with pytest.raises(CheckpointError, match="do_lower_case is true, expected false"):
        read_sentence_length(tmp_path)
