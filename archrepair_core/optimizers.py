"""What takes the steps of a training."""

from torch import nn, optim

from archrepair_core.scope import Scope, in_scope

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
# Parameters of this name choose between operations (search/supernet.py).
ALPHAS_SUFFIX = ".alphas"
ALPHA_RATE = 0.01


def make_optimizers(
    model: nn.Module, scope: Scope, rate: float, *, weight_decay: float = WEIGHT_DECAY, bold: bool = False
) -> list[optim.Optimizer]:
    """SGD, or where `bold` AdamW, for the weights of `scope`, first; Adam for the alphas of its supernets, if any.

    Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019, section 3: the architect's own optimizer.
    """
    parameters = dict(model.named_parameters())
    chosen = [name for name in parameters if in_scope(name, scope)]
    weights = [parameters[name] for name in chosen if not name.endswith(ALPHAS_SUFFIX)]
    alphas = [parameters[name] for name in chosen if name.endswith(ALPHAS_SUFFIX)]
    first: optim.Optimizer
    if bold:
        first = optim.AdamW(weights, lr=rate, weight_decay=weight_decay, foreach=True)
    else:
        first = optim.SGD(weights, lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=weight_decay, foreach=True)
    return [first, optim.Adam(alphas, lr=ALPHA_RATE, betas=(0.5, 0.999))] if alphas else [first]
