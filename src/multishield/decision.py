"""The decision rule: accept the classifier's class, or reject. Pure functions of both models' scores."""

import torch
from torch import Tensor


def alignment_gap(logits: Tensor, cosines: Tensor) -> Tensor:
    """g = max_j c_j - c_k with k the classifier's prediction: 0 where CLIP agrees. (B,) >= 0."""
    predicted = logits.argmax(1, keepdim=True)
    return cosines.max(1).values - cosines.gather(1, predicted).squeeze(1)


def shield_output(logits: Tensor, cosines: Tensor, tolerance: float) -> Tensor:
    """K+1 outputs: the logits, and r = max z + g - tau in column K (paper, eq. of the reject logit).

    argmax = K exactly where g > tau. Floating-point sums lose a small g beside a large max z, so the sign of g - tau
    is kept: r is moved to the next float above or below max z where rounding would have decided.

    Args:
        logits: z (B,K). cosines: c (B,K). tolerance: tau >= 0, in units of cosine.
    """
    top = logits.max(1).values
    excess = alignment_gap(logits, cosines) - tolerance
    reject = top + excess
    above = torch.nextafter(top.detach(), torch.full_like(top, torch.inf))
    reject = torch.where((excess > 0) & (reject <= top), reject + (above - reject).detach(), reject)
    # An exact tie at g = tau is accepted: argmax returns the first of equal entries, which is the class.
    return torch.cat([logits, reject.unsqueeze(1)], 1)
