"""How much of a tower is trained, and at what cost: frozen parts, decayed learning rates, recomputation, compiling.

A tower that takes part has ``layers``, its blocks from input to output. What lies before the first of them (embeddings, the
front end's norms) and behind the last (final norm, pooler, pooling) is found by a forward pass, see ``split_tower``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from clapkit.errors import ConfigError

if TYPE_CHECKING:
    from clapkit.encoders.dual import DualEncoder

MOST_GRAPHS = 64
"""Compiled variants of one layer class: shapes differ between stages, lengths, training and validation; torch stops at 8."""


def layers_of(tower: nn.Module, name: str, *, flag: str) -> list[nn.Module]:
    """The blocks of a tower from input to output.

    Args:
        tower: audio or text tower.
        name: what to call it in a message.
        flag: the option that asks.

    Raises:
        ConfigError: if it has none.
    """
    layers = list(getattr(tower, "layers", ()))
    if not layers:
        raise ConfigError(f"{flag}: the {name} has no layers to choose from; leave {flag} out or take another tower")
    return layers


def split_tower(tower: nn.Module, layers: Sequence[nn.Module], embed: Callable[[], Tensor]) -> list[set[nn.Parameter]]:
    """Parameters of a tower from its first layer to its output: one set per layer, and one for what lies behind the last.

    They are read off the autograd graph of one forward pass in evaluation mode. The order in which modules are registered
    does not say it: the norm of wav2vec 2.0 is registered before the layers and comes before or behind them, depending on the
    variant, and the batch norm of HTSAT is registered behind the layers and comes first. What lies between two layers, such as
    the patch merging of Swin, goes with the later one. Parameters that act before the first layer, even if they act behind it
    as well, and those that the pass does not use are in no set.

    Args:
        tower: audio or text tower; is left as it is.
        layers: its blocks.
        embed: calls the tower on anything.
    """
    entering: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    leaving: set[Any] = set()

    def enter(layer: nn.Module, args: Any, named: Any) -> None:
        entering[layer].extend(_tensors((args, named)))

    def leave(layer: nn.Module, args: Any, result: Any) -> None:
        leaving.update(tensor.grad_fn for tensor in _tensors(result))

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    with observed(tower, hooks):
        features = embed()
    parts = [set(layer.parameters()) for layer in layers]
    placed = _leaves(entering[layers[0]], stop=leaving).union(*parts)
    for layer, part in zip(layers, parts, strict=True):
        leading = _leaves(entering[layer], stop=leaving) - placed
        part |= leading
        placed |= leading
    return [*parts, _leaves([features], stop=leaving) - placed]


@contextmanager
def observed(tower: nn.Module, hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Watch a tower with hooks, in evaluation mode and with gradients for all parameters; put it back afterwards."""
    grads = [(p, p.requires_grad) for p in tower.parameters()]
    modes = [(module, module.training) for module in tower.modules()]
    try:
        tower.eval().requires_grad_(True)
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments or results."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def _leaves(tensors: Iterable[Tensor], *, stop: set[Any]) -> set[Any]:
    """The leaves that tensors were computed from, without looking behind the nodes in ``stop``."""
    tensors = list(tensors)
    leaves = {tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf}
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen = {None, *stop}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return leaves


def modules_within(tower: nn.Module, parameters: Iterable[nn.Parameter]) -> list[nn.Module]:
    """The modules of a tower all of whose parameters (one at least) are among those given."""
    given = set(parameters)
    own = [(module, set(module.parameters())) for module in tower.modules()]
    return [module for module, parts in own if parts and parts <= given]


def hold_still(tower: nn.Module, except_for: Iterable[nn.Module], *, training: bool) -> None:
    """Put a frozen tower into evaluation mode, but some modules into training mode.

    Batch norms whose gain is frozen stay in evaluation there, too: their statistics belong to their gain.
    """
    tower.eval()
    for module in except_for:
        module.train(training)
        for norm in (part for part in module.modules() if isinstance(part, _BatchNorm)):
            if not any(p.requires_grad for p in norm.parameters()):
                norm.eval()


def layer_scales(tower: nn.Module, parts: Sequence[Iterable[nn.Parameter]], *, decay: float) -> dict[str, float]:
    """Parameter name -> share of the learning rate, decaying from output to input.

    With n layers what lies behind them has 1, the last layer ``decay``, the first layer ``decay ** n`` and what lies before it
    ``decay ** (n + 1)``.

    Reference: Bao et al., BEiT, 2021, arXiv 2106.08254 (fine-tuning).

    Args:
        tower: audio or text tower.
        parts: from ``split_tower``.
        decay: share that a layer has of the one behind it.
    """
    scales = dict.fromkeys(tower.parameters(), decay ** len(parts))
    for behind, part in enumerate(reversed(parts)):
        scales |= dict.fromkeys(part, decay**behind)
    return {name: scales[p] for name, p in tower.named_parameters()}


def count_trainable(encoder: nn.Module) -> int:
    """Numbers that training changes; tied ones count once."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def checkpoint_layers(tower: nn.Module) -> None:
    """Let the layers of a tower compute their activations again in the backward pass instead of keeping them.

    Loss, gradients and running statistics stay the same, bit by bit; a step takes about a third longer. Only the input of every
    layer is kept. The library transformers has this for some models only, and not for CLAP.

    Reference: Chen et al., 2016, arXiv 1604.06174.

    Raises:
        ConfigError: if the tower has no layers.
    """
    for layer in layers_of(tower, f"tower {type(tower).__name__}", flag="--grad-checkpointing"):
        # A bound method and no closure: a deep copy of the layer gets one that is bound to the copy.
        layer.forward = MethodType(_forward_again, layer)


def _forward_again(layer: nn.Module, *args: Any, **named: Any) -> Any:
    forward = partial(type(layer).forward, layer, *args, **named)
    if not (layer.training and torch.is_grad_enabled()):
        return forward()
    settings: dict[str, Any] = {"context_fn": lambda: (nullcontext(), _statistics_kept(layer))} if _batch_norms(layer) else {}
    # The tensors are named besides, because checkpoint keeps the random numbers of the devices of its positional arguments.
    tensors = _tensors((args, named))
    return checkpoint(lambda *_: forward(), *tensors, use_reentrant=False, preserve_rng_state=True, **settings)


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let batch norms count into copies of their running statistics, so that a batch is not counted twice."""
    kept = [(norm, name, buffer) for norm in _batch_norms(module) for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


def compile_towers(encoder: DualEncoder, *, backend: str = "inductor") -> None:
    """Compile the layers of both towers in place; names of the weights stay, and a deep copy is not compiled.

    Layers and not whole towers: tokenizers, packed sequences and masks around them break the graph, and equal layers share one
    compiled graph. Recurrent layers are left out, torch has one kernel for each already, and so are layers with average pooling
    in ceil mode, our convolution stages: torch 2.11 compiles them to wrong gradients where a size is odd.

    Args:
        encoder: on its device.
        backend: of ``torch.compile``.

    Raises:
        ConfigError: if there is nothing to compile, or a layer with batch norm computes its activations again.
    """
    layers = [layer for tower in (encoder.audio_tower, encoder.text_tower) for layer in getattr(tower, "layers", ())]
    layers = [layer for layer in layers if not isinstance(layer, nn.RNNBase) and not _pools_in_ceil_mode(layer)]
    if not layers:
        names = " and ".join(encoder.tower_names.values())
        raise ConfigError(f"--compile: the towers {names} have no layers that can be compiled; leave --compile out")
    if any("forward" in vars(layer) and _batch_norms(layer) for layer in layers):
        raise ConfigError("--compile with --grad-checkpointing: layers with batch norm cannot have both; leave one out")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    for layer in layers:
        layer.compile(backend=backend)


def _pools_in_ceil_mode(layer: nn.Module) -> bool:
    return any(isinstance(part, (nn.AvgPool1d, nn.AvgPool2d)) and part.ceil_mode for part in layer.modules())
