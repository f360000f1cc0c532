import json

import pytest
import torch

from clapkit.encoders.audio._families import FAMILIES, Settings
from clapkit.encoders.audio.hf import build
from clapkit.errors import CheckpointError


def front_end_of(saved):
    return json.loads((saved.folder / "preprocessor_config.json").read_text())


def test_every_family_names_a_class_of_the_library_whose_configuration_is_of_its_model_type():
    for model_type, family in FAMILIES.items():
        assert family.load_class().config_class.model_type == model_type


@pytest.mark.parametrize(
    ("kind", "entries", "message"),
    [
        (
            "clap",
            {"feature_extractor_type": "ASTFeatureExtractor"},
            "is a ASTFeatureExtractor, the model takes that of ClapFea",
        ),
        ("clap", {"truncation": "fusion"}, "truncation is 'fusion', expected rand_trunc"),
        ("clap", {"padding": "mirror"}, "padding is 'mirror', expected repeatpad or repeat or pad"),
        ("clap", {"hop_length": "80"}, "hop_length is '80', expected a number"),
        ("clap", {"hop_length": True}, "hop_length is True, expected a number"),
        ("clap", {"hop_length": 0}, "hop_length is 0, expected a whole number from 1"),
        ("clap", {"feature_size": 20}, "gives 20 mel bins, the model takes 16"),
        ("ast", {"num_mel_bins": 64}, "gives 64 mel bins, the model takes 32"),
        ("ast", {"max_length": 1024}, "gives 1024 frames, the model takes 128"),
        ("wav2vec2-bert", {"stride": 4}, "gives 4 frames at a time, the model takes 2"),
        ("wav2vec2-bert", {"num_mel_bins": 80}, "gives 160 numbers a frame, the model takes 32"),
        ("whisper", {"feature_size": 80}, "gives 80 mel bins, the model takes 16"),
        ("whisper", {"chunk_length": 30}, "gives 3000 frames, the model takes 100"),
    ],
)
def test_front_ends_that_do_not_fit_the_model_are_refused(kind, entries, message, saved_model):
    saved = saved_model(kind)
    with pytest.raises(CheckpointError, match=message) as error:
        build(weights=str(saved.folder), front_end=front_end_of(saved) | entries)
    assert "\n" not in str(error.value)


def test_a_missing_number_has_the_default_of_the_librarys_extractor():
    from transformers.models.clap.feature_extraction_clap import ClapFeatureExtractor
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

    # The class says 0 Hz, the published files say 50: what is not in a file must not be guessed from other files.
    library = ClapFeatureExtractor(truncation="rand_trunc")
    config = {"model_type": "clap_audio_model", "depths": [1, 1], "num_attention_heads": [1, 1], "patch_embeds_hidden_size": 4}
    tower = build(config=config, front_end={"truncation": "rand_trunc"})
    torch.testing.assert_close(
        tower.front_end.mel.filters, torch.from_numpy(library.mel_filters_slaney).float(), rtol=1e-5, atol=1e-9
    )
    assert tower.audio_spec.window_samples == library.nb_max_samples
    assert (tower.front_end.mel.hop, tower.front_end.mel.window) == (library.hop_length, library.fft_window_size)
    whisper = WhisperFeatureExtractor()
    sizes = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 8}
    tower = build(config={"model_type": "whisper"} | sizes, front_end={})
    torch.testing.assert_close(tower.front_end.mel.filters, torch.from_numpy(whisper.mel_filters).float(), rtol=1e-5, atol=1e-9)
    assert tower.front_end.chunk_samples == whisper.n_samples


def test_settings_without_a_type_are_taken_as_they_are():
    # Files from before 2021 do not name their extractor.
    assert Settings({"sampling_rate": 16000}, "Wav2Vec2FeatureExtractor").sample_rate == 16000


@pytest.mark.parametrize(
    ("entries", "pool"),
    [
        ({"feat_extract_norm": "group"}, "grouped_mean"),
        ({"feat_extract_norm": "layer"}, "masked_mean"),
        ({"feat_extract_norm": "layer", "conv_pos_batch_norm": True}, "grouped_mean"),
    ],
)
def test_models_that_hear_padding_take_clips_of_one_length_at_a_time(entries, pool):
    family = FAMILIES["hubert"]
    assert next(iter(family.pools(family.load_class().config_class(**entries)).values())).__name__ == pool
