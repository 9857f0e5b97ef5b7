"""Models with a head: extractive question answering (with its loss), sequence classification; and ensembles of them.

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
    """Start and end logits of every token, (N,) packed or (B, L) padded; float32 also under autocast."""

    start: Tensor
    end: Tensor


class SpanOutput(NamedTuple):
    """Start and end logits, with hidden states or attention maps where requested; see EncoderOutput."""

    start: Tensor
    end: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class ClassOutput(NamedTuple):
    """Class logits (S, C), with hidden states or attention maps where requested; see EncoderOutput."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class _WithEncoder(nn.Module):
    """Base of the models with a head. Their config is the encoder's."""

    encoder: BertEncoder

    @property
    def config(self) -> BertConfig:
        """The encoder's configuration. A new one may be assigned if it fits the parameters."""
        return self.encoder.config

    @config.setter
    def config(self, config: BertConfig) -> None:
        self.encoder.config = config


class BertForQuestionAnswering(_WithEncoder):
    """The encoder and a linear layer that scores each token as the start and as the end of the answer."""

    def __init__(
        self, config: BertConfig, attention: Attention | Sequence[Attention] | None = None
    ):
        super().__init__()
        # Without a pooler, whose parameters would get no gradient.
        self.encoder = BertEncoder(config.replace(pooler=False), attention)
        self.span = nn.Linear(config.hidden_size, 2)
        init_weights(self.span, config.initializer_range)

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
        """Return span logits of a padded (B, L) or packed (N,) batch; arguments as BertEncoder's.

        Logits of padding are float32's minimum, not -inf, whose sums and differences could be NaN. Returns SpanLogits, or
        a SpanOutput where hidden states or attentions are requested.
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
        # As in transformers: dropout before DistilBERT's span head, none before BERT's.
        if self.config.model_type == "distilbert":
            x = dropout(x, self.config.hidden_dropout_prob, self.training)
        logits = in_float32(self.span, x)  # (.., H) -> (.., 2): start and end
        if attention_mask is not None:
            is_padding = ~attention_mask.bool()[..., None]  # (B, L, 1)
            logits = logits.masked_fill(is_padding, torch.finfo(torch.float32).min)
        start, end = logits.unbind(-1)
        if out.hidden_states is not None or out.attentions is not None:
            return SpanOutput(start, end, out.hidden_states, out.attentions)
        return SpanLogits(start, end)


def in_float32(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in float32, also under autocast; in float64 if `x` is float64.

    16-bit logits would make ties of spans with nearly equal scores, and in float32 a head costs little.
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
    """Return the sum over S windows of the loss of each: the mean of its start's and its end's cross-entropy.

    A sum and not a mean, because the caller divides once by the number of windows in the whole optimizer step.

    Args:
        logits: packed, (N,) each.
        layout: of the same N tokens.
        start_labels, end_labels: (S,) positions in each window; 0, [CLS], for a window without an answer.
        weights: (S,) weight of each window; None: 1 each. 0 for windows that only fill up a static batch.
    """
    starts = _cross_entropy(logits.start, layout, start_labels)  # (S,)
    ends = _cross_entropy(logits.end, layout, end_labels)  # (S,)
    losses = (starts + ends) / 2
    if weights is not None:
        losses = losses * weights
    return losses.sum()


def _cross_entropy(logits: Tensor, layout: Layout, labels: Tensor) -> Tensor:
    """Logits (N,), labels (S,) -> (S,) cross-entropy of a softmax over the tokens of each window."""
    # Not padded with -inf: the loss of a window without tokens would be NaN, which its weight of 0 does not remove.
    lowest = torch.finfo(logits.dtype).min
    log_p = layout.pad(logits, lowest).log_softmax(1)  # (N,) -> (S, L)
    return F.nll_loss(log_p, labels, reduction="none")


class BertForSequenceClassification(_WithEncoder):
    """The encoder and a linear layer on its pooler (DistilBERT: on relu(dense([CLS])) of the head's own)."""

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
        """Return class logits (S, C), float32 also under autocast; arguments as BertEncoder's.

        Returns the tensor, or a ClassOutput where hidden states or attentions are requested.
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
            cls = _first_tokens(out.last_hidden_state, attention_mask, lengths)
            pooled = torch.relu(in_float32(self.pre_classifier, cls))  # (S, H)
        pooled = dropout(pooled, self.config.hidden_dropout_prob, self.training)
        logits = in_float32(self.classifier, pooled)  # (S, C)
        if out.hidden_states is not None or out.attentions is not None:
            return ClassOutput(logits, out.hidden_states, out.attentions)
        return logits


def _first_tokens(hidden: Tensor, attention_mask: Tensor | None, lengths) -> Tensor:
    """(N, H) or (B, L, H) -> (S, H), the vector of each sequence's [CLS]; padding may stand before it."""
    if hidden.dim() == 2:
        layout = layout_of(lengths, hidden.shape[0], hidden.device)
        return hidden[layout.first_tokens]
    if attention_mask is None:
        return hidden[:, 0]
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, first_columns(attention_mask.bool())]


class Ensemble(nn.Module):
    """Several models called as one: the mean of their logits (Breiman 1996). Scores higher, and serves as a teacher.

    The members need the same kind of head and the same vocabulary.

    Logits are averaged and not probabilities, so that the result can be compared across windows, thresholded and
    distilled as that of a single model.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        assert members, "an ensemble of no model"
        self.members = nn.ModuleList(members)
        self.config = members[0].config
        # Only classifiers have classes.
        self.num_labels = getattr(members[0], "num_labels", None)

    def forward(self, *inputs, **options) -> SpanLogits | Tensor:
        """Return the mean of the M members' span logits, or class logits (S, C)."""
        outputs = [member(*inputs, **options) for member in self.members]
        if isinstance(outputs[0], SpanLogits):
            start = torch.stack([logits.start for logits in outputs]).mean(0)  # (M, N) -> (N,)
            end = torch.stack([logits.end for logits in outputs]).mean(0)
            return SpanLogits(start, end)
        return torch.stack(outputs).mean(0)  # (M, S, C) -> (S, C)
