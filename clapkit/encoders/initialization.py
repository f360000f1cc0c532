"""Start values of the towers that are trained from scratch."""

from __future__ import annotations

from torch import nn


def preserve_variance(module: nn.Module) -> None:
    """Draw the kernels and matrices of a module so that activations keep their scale from layer to layer.

    Torch's own defaults are smaller by a factor of 1.7 to 2.4. Adam moves every weight by about the learning rate whatever
    its gradient, so smaller start values make the same learning rate a relatively larger, noisier one.

    Reference: He et al., 2015, arXiv 1502.01852 (convolutions before rectifiers, fan-out).
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
