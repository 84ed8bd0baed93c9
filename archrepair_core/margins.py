"""Margins: how far the right answer leads, and what a repair has lost of that. N inputs, K classes."""

from torch import Tensor
from torch.nn import functional as F

# An answer is safe when its logit leads by so much: the others are e⁵ times less likely.
SAFE_MARGIN = 5.0


def margins_of(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Logit of the true class minus the largest other one; positive means right."""
    true_N1 = logits_NK.gather(1, labels_N[:, None])
    others_NK = logits_NK.scatter(1, labels_N[:, None], float("-inf"))
    return (true_N1 - others_NK.max(1, keepdim=True).values).squeeze(1)


def lead_of(logits_NK: Tensor) -> Tensor:
    """How far the answer given leads [N], whether it is right or not."""
    first_and_second = logits_NK.topk(2, dim=1).values
    return first_and_second[:, 0] - first_and_second[:, 1]


def lost_margin(logits_NK: Tensor, original_NK: Tensor, labels_N: Tensor) -> Tensor:
    """What each input [N] has lost of the original's margin, where that was no more than `SAFE_MARGIN`.

    Beside distillation it left a little more gain at the same broken share (docs/choices.md).
    """
    return F.relu(margins_of(original_NK, labels_N).clamp_max(SAFE_MARGIN) - margins_of(logits_NK, labels_N))
