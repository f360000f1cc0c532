import torch

from clapkit.encoders.audio import small
from clapkit.encoders.audio.light import build


def multiplications(tower: torch.nn.Module) -> int:
    """Of the convolutions, for one window."""
    counted = []

    def count(module: torch.nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        counted.append(output.numel() * module.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in tower.modules() if isinstance(m, torch.nn.Conv2d)]
    tower.eval()(torch.zeros(1, 80000), torch.tensor([80000]))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def test_its_convolutions_are_less_than_half_the_work_of_small() -> None:
    assert 2 * multiplications(build()) < multiplications(small.build())


def test_silence_behind_the_end_is_not_read() -> None:
    torch.manual_seed(0)
    tower = build().eval()
    tower.stages.register_forward_hook(lambda module, inputs, planes: planes.clone().index_fill_(2, torch.tensor([6, 7]), 9.0))
    disturbed = tower(torch.ones(1, 80000), torch.tensor([5 * tower.stride]))
    tower.stages.register_forward_hook(lambda module, inputs, planes: planes.clone().index_fill_(2, torch.tensor([6, 7]), -9.0))
    assert torch.equal(disturbed, tower(torch.ones(1, 80000), torch.tensor([5 * tower.stride])))
