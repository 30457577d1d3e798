"""Multi-Shield: the classifier's logits, the alignment's cosines, and one decision that may be "reject"."""

from torch import Tensor, nn

from multishield.alignment import load_alignment
from multishield.classifiers import load_classifier
from multishield.decision import shield_output


class MultiShield(nn.Module):
    """One differentiable module from pixels in [0,1] (B,3,H,W) to K+1 outputs (B,K+1); column K is "reject".

    Args:
        classifier: pixels to logits (B,K).
        alignment: pixels to cosines (B,K).
        tolerance: tau >= 0; the classifier's class k is accepted if g = max_j c_j - c_k <= tau. 0 is the paper's text
            (reject any disagreement), 0.001 the public reference code.

    Raises:
        ValueError: the tolerance is negative or not finite.
    """

    def __init__(self, classifier: nn.Module, alignment: nn.Module, tolerance: float = 0.001):
        super().__init__()
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"tolerance is {tolerance}; it must be a finite number >= 0")
        self.classifier, self.alignment, self.tolerance = classifier, alignment, tolerance

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits z (B,K) and cosines c (B,K)."""
        return self.classifier(x), self.alignment(x)

    def forward(self, x: Tensor) -> Tensor:
        return shield_output(*self.scores(x), self.tolerance)


def load_shield(name: str, tolerance: float) -> MultiShield:
    """The shield of the pipeline's classifier `name` and its alignment, frozen, on the best device."""
    return MultiShield(load_classifier(name), load_alignment(), tolerance).eval()
