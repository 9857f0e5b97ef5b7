"""Several models as one: the mean of their logits (Breiman 1996), for people who want the last point, and as a teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bertqa.model.heads import SpanLogits


class Ensemble(nn.Module):
    """Models with the same kind of head over the same vocabulary, called like one of them.

    Logits and not probabilities are averaged: the mean over a window is then a softmax of logits too, which can be
    compared over windows, thresholded and distilled like that of a single model.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        assert members, "an ensemble of no model"
        self.members = nn.ModuleList(members)
        self.config = members[0].config
        # A classifier says how many classes it has; a reader has none.
        self.num_labels = getattr(members[0], "num_labels", None)

    def forward(self, *inputs, **options) -> SpanLogits | Tensor:
        """The mean of what the members return for these arguments: span logits, or class logits (S, C)."""
        each = [member(*inputs, **options) for member in self.members]
        if isinstance(each[0], SpanLogits):
            start = torch.stack([logits.start for logits in each]).mean(0)  # (M, N) -> (N,)
            end = torch.stack([logits.end for logits in each]).mean(0)
            return SpanLogits(start, end)
        return torch.stack(each).mean(0)  # (M, S, C) -> (S, C)
