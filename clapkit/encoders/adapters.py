"""Low-rank adapters: a few numbers beside every matrix of a tower, trained instead of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from clapkit.encoders.adaptation import observed
from clapkit.errors import ConfigError

if TYPE_CHECKING:
    from clapkit.encoders.dual import DualEncoder, Side

ADAPTER = "default"


def add_adapters(encoder: DualEncoder, side: Literal["audio", "text", "both"], *, rank: int) -> None:
    """Train towers through low-rank adapters beside the linear layers of their attention and feed-forward.

    Everything else of these towers is frozen; their layers keep their dropout. The embeddings are those of the towers without
    adapters until the first step. ``DualEncoder.save`` writes the sum of weights and adapters, so that what is saved loads
    without peft; ``state_dict`` keeps both apart, for checkpoints. Adapters are drawn from torch's global generator.

    Reference: Hu et al., LoRA, 2021, arXiv 2106.09685; the product is scaled by 2 (alpha is twice the rank).

    Args:
        encoder: its towers change in place.
        side: tower, or both.
        rank: of the adapters.

    Raises:
        ConfigError: if peft is not installed, or a tower has no linear layers where adapters could be.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("--lora: peft is not installed; pip install 'clapkit[lora]'") from error
    sides: tuple[Side, ...] = ("audio", "text") if side == "both" else (side,)
    found = {each: _linear_names(encoder, each) for each in sides}
    for each, names in found.items():
        encoder.freeze(each, except_for=encoder.layers(each, flag="--lora"))
        exactly = "|".join(map(re.escape, names))  # a list of names would match the ends of other names
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", target_modules=exactly)
        inject_adapter_in_model(config, encoder.tower(each), adapter_name=ADAPTER)


def _linear_names(encoder: DualEncoder, side: Side) -> list[str]:
    """Names of the linear layers inside the layers of a tower, those whose forward is called.

    Some attentions (torch's own, WavLM) take the weights of theirs and never call them; adapters there would do nothing.
    """
    inside = {part for layer in encoder.layers(side, flag="--lora") for part in layer.modules()}
    linear = {part: name for name, part in encoder.tower(side).named_modules() if part in inside and type(part) is nn.Linear}
    called: set[nn.Module] = set()
    with observed(encoder.tower(side), [part.register_forward_hook(lambda *call: called.add(call[0])) for part in linear]):
        encoder.probe(side)
    names = [name for part, name in linear.items() if part in called]
    if not names and any(type(part).__name__ == "Conv1D" for part in inside):
        raise ConfigError(
            f"--lora {side}: the layers of the {side} tower are those of GPT-2, whose matrices are Conv1D and not Linear, and "
            "clapkit has no adapters for these; leave the tower out, or train its last layers with --freeze and --unfreeze-last"
        )
    if not names:
        raise ConfigError(
            f"--lora {side}: the {side} tower {encoder.tower_names[side]} has no linear layers inside its layers, which "
            "adapters need; leave the tower out or take one with attention"
        )
    return names


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module under the names that they have without adapters, adapters added to their weights."""
    state = dict(module.state_dict())
    for name, part in module.named_modules():
        if not hasattr(part, "base_layer"):
            continue
        weight = state[f"{name}.base_layer.weight"]
        state[f"{name}.weight"] = weight + part.get_delta_weight(ADAPTER).to(weight.dtype)
        if part.base_layer.bias is not None:
            state[f"{name}.bias"] = state[f"{name}.base_layer.bias"]
        for key in [key for key in state if key.startswith((f"{name}.base_layer.", f"{name}.lora_"))]:
            del state[key]
    return state
