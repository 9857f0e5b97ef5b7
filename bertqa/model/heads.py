"""What stands on the encoder: answer spans, or classes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.model.attention import Attention, Layout
from bertqa.model.config import BertConfig
from bertqa.model.dropout import dropout
from bertqa.model.encoder import BertEncoder, init_weights


class SpanLogits(NamedTuple):
    """Start and end score of every token, float32 whatever the precision inside: (N,) packed, (B, L) padded."""

    start: Tensor
    end: Tensor


class BertForQuestionAnswering(nn.Module):
    """The encoder and one linear layer that scores each token as first and as last of the answer."""

    def __init__(self, config: BertConfig, attention: Attention | None = None):
        super().__init__()
        self.config = config = config.replace(
            pooler=False
        )  # a pooler would be a parameter without a gradient
        self.encoder = BertEncoder(config, attention)
        self.span = nn.Linear(config.hidden_size, 2)
        init_weights(self.span, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        lengths=None,
    ) -> SpanLogits:
        """Span logits of a padded (B, L) or packed (N,) batch; arguments as BertEncoder's. Padding scores float32's
        minimum (not -inf, so that a sum of two of them stays a number)."""
        x = self.encoder(
            input_ids, attention_mask, token_type_ids, lengths=lengths
        ).last_hidden_state
        if self.config.model_type == "distilbert":
            x = dropout(x, self.config.hidden_dropout_prob, self.training)
        # 16-bit logits round spans of nearly equal score to ties; the head is small, so it runs in float32.
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(
                x.float(), self.span.weight.float(), self.span.bias.float()
            )  # (.., H) -> (.., 2)
        if attention_mask is not None:
            logits = logits.masked_fill(
                ~attention_mask.bool()[..., None], torch.finfo(torch.float32).min
            )
        return SpanLogits(*logits.unbind(-1))


def span_loss(
    logits: SpanLogits,
    layout: Layout,
    start_labels: Tensor,
    end_labels: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """Sum over the S windows of the mean of two cross-entropies, of the first and of the last token of the answer.

    Args:
        logits: packed, (N,) each.
        layout: of the same N tokens.
        start_labels, end_labels: (S,) positions within each window; 0 ([CLS]) where it holds no answer.
        smoothing: share of each label spread evenly over the window's own tokens (Szegedy et al. 2015).

    A sum and not a mean: the caller divides once by the number of windows of the whole optimizer step.
    """
    return (
        _cross_entropy(logits.start, layout, start_labels, smoothing)
        + _cross_entropy(logits.end, layout, end_labels, smoothing)
    ) / 2


def _cross_entropy(logits: Tensor, layout: Layout, labels: Tensor, smoothing: float) -> Tensor:
    """Summed cross-entropy of S softmaxes, each over the tokens of one window: (N,), (S,) -> ()."""
    # Only the logits are padded, one number a token.
    log_p = layout.pad(logits, float("-inf")).log_softmax(1)  # (N,) -> (S, L)
    loss = F.nll_loss(log_p, labels, reduction="sum")
    if smoothing:
        lengths = layout.cu_seqlens.diff()  # (S,)
        even = -(layout.unpad(log_p) / lengths[layout.sequence]).sum()
        loss = (1 - smoothing) * loss + smoothing * even
    return loss


class BertForSequenceClassification(nn.Module):
    """The encoder and a linear layer over its pooled [CLS] (DistilBERT: over a dense layer with ReLU of its own)."""

    def __init__(self, config: BertConfig, num_labels: int, attention: Attention | None = None):
        super().__init__()
        distil = config.model_type == "distilbert"
        self.config, self.num_labels = config.replace(pooler=not distil), num_labels
        self.encoder = BertEncoder(self.config, attention)
        if distil:
            self.pre_classifier = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        for head in (getattr(self, "pre_classifier", None), self.classifier):
            if head is not None:
                init_weights(head, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        lengths=None,
    ) -> Tensor:
        """Class logits (S, C), float32; arguments as BertEncoder's."""
        if lengths is not None and not isinstance(lengths, Layout):
            lengths = Layout.of(lengths, input_ids.device)
        out = self.encoder(input_ids, attention_mask, token_type_ids, lengths=lengths)
        if hasattr(self, "pre_classifier"):
            first = (
                out.last_hidden_state[lengths.first_tokens]
                if lengths
                else out.last_hidden_state[:, 0]
            )
            pooled = torch.relu(self.pre_classifier(first))  # (S, H)
        else:
            pooled = out.pooled
        pooled = dropout(pooled, self.config.hidden_dropout_prob, self.training)
        with torch.autocast(pooled.device.type, enabled=False):
            return F.linear(
                pooled.float(), self.classifier.weight.float(), self.classifier.bias.float()
            )  # (S, C)
