"""What stands on the encoder: answer spans, or classes; and several such models as one.

S sequences, N tokens in all of them, B rows and L columns of a padded batch, H hidden size, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.model.attention import Attention, Layout
from bertqa.model.config import BertConfig
from bertqa.model.dropout import dropout
from bertqa.model.encoder import BertEncoder, init_weights
from bertqa.model.padding import first_columns, layout_of


class SpanLogits(NamedTuple):
    """Start and end score of every token, float32 or wider whatever the precision inside: (N,) packed, (B, L) padded."""

    start: Tensor
    end: Tensor


class SpanOutput(NamedTuple):
    """SpanLogits, and what was asked for beside them; see EncoderOutput."""

    start: Tensor
    end: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class ClassOutput(NamedTuple):
    """Class logits (S, C), and what was asked for beside them; see EncoderOutput."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


def _config_of(model: nn.Module) -> BertConfig:
    """The encoder's; setting it changes the encoder, see there."""
    return model.encoder.config


def _change_config(model: nn.Module, config: BertConfig) -> None:
    model.encoder.config = config


class BertForQuestionAnswering(nn.Module):
    """The encoder and one linear layer that scores each token as first and as last of the answer."""

    def __init__(
        self, config: BertConfig, attention: Attention | Sequence[Attention] | None = None
    ):
        super().__init__()
        # A pooler would be a parameter without a gradient.
        self.encoder = BertEncoder(config.replace(pooler=False), attention)
        self.span = nn.Linear(config.hidden_size, 2)
        init_weights(self.span, config.initializer_range)

    config = property(_config_of, _change_config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        lengths: Sequence[int] | Layout | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> SpanLogits | SpanOutput:
        """Span logits of a padded (B, L) or packed (N,) batch; arguments as BertEncoder's.

        Padding scores float32's minimum (not -inf, so that a sum of two of them stays a number). Returns SpanLogits, or a
        SpanOutput where hidden states or attentions are asked for.
        """
        out = self.encoder(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds=inputs_embeds,
            lengths=lengths,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        x = out.last_hidden_state  # (N, H) or (B, L, H)
        # DistilBERT's span head has dropout before it, BERT's has none, as in transformers.
        if self.config.model_type == "distilbert":
            x = dropout(x, self.config.hidden_dropout_prob, self.training)
        logits = in_float32(self.span, x)  # (.., H) -> (.., 2): as first, and as last of the answer
        if attention_mask is not None:
            is_padding = ~attention_mask.bool()[..., None]  # (B, L, 1)
            logits = logits.masked_fill(is_padding, torch.finfo(torch.float32).min)
        start, end = logits.unbind(-1)
        if out.hidden_states is not None or out.attentions is not None:
            return SpanOutput(start, end, out.hidden_states, out.attentions)
        return SpanLogits(start, end)


def in_float32(linear: nn.Linear, x: Tensor) -> Tensor:
    """The layer's value in float32, also under autocast; in float64 where `x` is.

    16-bit logits round spans of nearly equal score to ties, and a head is small enough to run in float32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))


def span_loss(
    logits: SpanLogits,
    layout: Layout,
    start_labels: Tensor,
    end_labels: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over the S windows of the mean of two cross-entropies, of the first and of the last token of the answer.

    Args:
        logits: packed, (N,) each.
        layout: of the same N tokens.
        start_labels, end_labels: (S,) positions within each window; 0 ([CLS]) where it holds no answer.
        weights: (S,) how much each window counts; 1 where None, 0 for what only fills a static batch.

    A sum and not a mean: the caller divides once by the number of windows of the whole optimizer step.
    """
    starts = _cross_entropy(logits.start, layout, start_labels)  # (S,)
    ends = _cross_entropy(logits.end, layout, end_labels)  # (S,)
    losses = (starts + ends) / 2
    if weights is not None:
        losses = losses * weights
    return losses.sum()


def _cross_entropy(logits: Tensor, layout: Layout, labels: Tensor) -> Tensor:
    """Cross-entropy of S softmaxes, each over the tokens of one window: (N,), (S,) -> (S,)."""
    # Only the logits are padded, one number a token. Not with -inf: a window without tokens would lose NaN, and a weight
    # of 0 does not make that 0.
    lowest = torch.finfo(logits.dtype).min
    log_p = layout.pad(logits, lowest).log_softmax(1)  # (N,) -> (S, L)
    return F.nll_loss(log_p, labels, reduction="none")


class BertForSequenceClassification(nn.Module):
    """The encoder and a linear layer over its pooled [CLS] (DistilBERT: over a dense layer with ReLU of its own)."""

    def __init__(
        self,
        config: BertConfig,
        num_labels: int,
        attention: Attention | Sequence[Attention] | None = None,
    ):
        super().__init__()
        is_distil = config.model_type == "distilbert"
        self.num_labels = num_labels
        self.encoder = BertEncoder(config.replace(pooler=not is_distil), attention)
        self.pre_classifier = None
        if is_distil:
            self.pre_classifier = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        if is_distil:
            init_weights(self.pre_classifier, config.initializer_range)
        init_weights(self.classifier, config.initializer_range)

    config = property(_config_of, _change_config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        lengths: Sequence[int] | Layout | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Tensor | ClassOutput:
        """Class logits (S, C), float32 or wider; arguments as BertEncoder's.

        Returns them alone, or a ClassOutput where hidden states or attentions are asked for.
        """
        out = self.encoder(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds=inputs_embeds,
            lengths=lengths,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        pooled = out.pooled  # (S, H)
        if self.pre_classifier is not None:
            first = self._first(out.last_hidden_state, attention_mask, lengths)
            pooled = torch.relu(in_float32(self.pre_classifier, first))  # (S, H)
        pooled = dropout(pooled, self.config.hidden_dropout_prob, self.training)
        logits = in_float32(self.classifier, pooled)  # (S, C)
        if out.hidden_states is not None or out.attentions is not None:
            return ClassOutput(logits, out.hidden_states, out.attentions)
        return logits

    def _first(self, hidden: Tensor, attention_mask: Tensor | None, lengths) -> Tensor:
        """(N, H) or (B, L, H) -> (S, H): what became of each sequence's [CLS], wherever the padding stands."""
        if hidden.dim() == 2:
            layout = layout_of(lengths, hidden.shape[0], hidden.device)
            return hidden[layout.first_tokens]
        if attention_mask is None:
            return hidden[:, 0]
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, first_columns(attention_mask.bool())]


class Ensemble(nn.Module):
    """Several models as one: the mean of their logits (Breiman 1996), for people who want the last point, and as a teacher.

    The members have the same kind of head over the same vocabulary, and are called like one of them.

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
