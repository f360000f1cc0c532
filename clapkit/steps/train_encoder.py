"""The dual encoder of a training run: fresh, from pre-trained towers or from a whole model, and what of it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clapkit.config import TrainConfig
from clapkit.data.manifest import Manifest
from clapkit.encoders.adaptation import checkpoint_layers, compile_towers, count_trainable
from clapkit.encoders.adapters import add_adapters
from clapkit.encoders.clap import exportable
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ConfigError
from clapkit.steps import inputs
from clapkit.training.batch_norm import batch_norm_in_training
from clapkit.types import Reporter


def build_encoder(
    config: TrainConfig, options: Mapping[str, Mapping[str, Any]], train_data: Manifest, reporter: Reporter
) -> DualEncoder:
    """The dual encoder in training mode, with its frozen parts frozen.

    Args:
        config: of the run.
        options: part -> options of its plug-in, from ``plugin_options``.
        train_data: its captions train the tokenizer of a tower that has none.
        reporter: is told what the towers have to say.

    Raises:
        CheckpointError: if weights cannot be used.
        ConfigError: if options contradict each other or the weights.
    """
    encoder = _from_model(config, options) if config.init is not None else _from_towers(config, options, train_data)
    for note in encoder.notes:
        reporter.say(note)
    _say_how_long_inputs_are_read(config, encoder)
    if config.export is not None:  # before adapters, which the saved model no longer has
        _check_exportable(encoder)
    encoder.train()
    if config.freeze is not None:
        encoder.freeze(config.freeze)
        if config.unfreeze_last is not None:
            encoder.unfreeze_last(config.freeze, config.unfreeze_last)
    if config.lora is not None:
        add_adapters(encoder, config.lora, rank=config.lora_rank or DEFAULT_RANK)
    if config.grad_checkpointing:
        checkpoint_layers(encoder.audio_tower)
        checkpoint_layers(encoder.text_tower)
    total = sum(p.numel() for p in encoder.parameters())
    trained = count_trainable(encoder)
    reporter.say(f"model: {total:,} parameters" + ("" if trained == total else f", {trained:,} of them trained"))
    return encoder


DEFAULT_RANK = 8


def prepare_for_device(config: TrainConfig, encoder: DualEncoder, reporter: Reporter) -> None:
    """Compile the towers where asked, and warn of what cached gradients change; the encoder is on its device."""
    if config.compile:
        compile_towers(encoder)
    normed = batch_norm_in_training(encoder)
    if config.grad_cache_chunk is not None and normed:
        reporter.warn(
            f"--grad-cache-chunk {config.grad_cache_chunk}: {len(normed)} batch norms (first {normed[0]}) see a chunk at a"
            " time; the result is that of the whole batch only for towers without batch norm"
        )


def _say_how_long_inputs_are_read(config: TrainConfig, encoder: DualEncoder) -> None:
    """Tell the encoder what becomes of captions and sounds that are longer than the towers read."""
    if config.long_captions is not None:
        encoder.long_captions = config.long_captions
    if config.fusion == "attention":
        encoder.add_window_attention()
    elif config.fusion is not None and encoder.fusion == "attention":
        raise ConfigError(f"--fusion {config.fusion}: the model of --init fuses windows by its attention; leave --fusion out")


def _from_towers(config: TrainConfig, options: Mapping[str, Mapping[str, Any]], train_data: Manifest) -> DualEncoder:
    captions = [caption.text for clip in train_data for caption in clip.captions]
    return DualEncoder(
        config.audio_encoder,
        config.text_encoder,
        embedding_dim=config.embedding_dim,
        audio_options=options["audio"],
        text_options={**options["text"], "captions": captions},
    )


def _from_model(config: TrainConfig, options: Mapping[str, Mapping[str, Any]]) -> DualEncoder:
    assert config.init is not None
    if options["audio"] or options["text"]:
        raise ConfigError(
            "--init brings its own towers; leave out --audio-weights, --text-weights and the -O options of the towers"
        )
    source = inputs.resolve_model(config.init, runs_root=config.runs_root)
    encoder = inputs.load_model(source.path, device="cpu")
    brought = {
        "audio_encoder": encoder.tower_names["audio"],
        "text_encoder": encoder.tower_names["text"],
        "embedding_dim": encoder.embedding_dim,
    }
    for field, held in brought.items():
        given = getattr(config, field)
        # A flag at its default looks like one that was not given.
        if given not in (held, getattr(TrainConfig, field)):
            flag = "--" + field.replace("_", "-")
            raise ConfigError(f"{flag} {given}: --init {config.init} brings its own, {held}; leave {flag} out")
    return encoder


def _check_exportable(encoder: DualEncoder) -> None:
    reason = exportable(encoder)
    if reason is not None:
        raise ConfigError(f"--export hf: {reason}")
