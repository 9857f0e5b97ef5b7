"""BERT's encoder, whole, in the order in which data flows through it (Devlin et al. 2018; post-norm transformer layers).

S sequences in a batch, N tokens in all of them, B rows and L columns of a padded batch, H hidden size, A heads,
D = H / A head size, F feed-forward size, V vocabulary.

Inside, a batch is N tokens in a row, without padding: embedding, linear, norm and GELU do not care which sequence a
token belongs to. Only attention does, and it is one function (attention.py).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertqa.errors import UserError
from bertqa.model.attention import (
    Attention,
    Layout,
    choose_attention,
    reference_attention_with_maps,
)
from bertqa.model.config import BertConfig
from bertqa.model.dropout import dropout


class EncoderOutput(NamedTuple):
    """What the encoder returns, always. (N, ...) after a packed call, (B, L, ...) after a padded one, zero on padding."""

    last_hidden_state: Tensor
    """(N, H) or (B, L, H)."""
    pooled: Tensor | None
    """(S, H): tanh(dense([CLS])); None where the model has no pooler."""
    hidden_states: tuple[Tensor, ...] | None
    """num_hidden_layers + 1 tensors like last_hidden_state, the embeddings first; None unless asked for."""
    attentions: tuple[Tensor, ...] | None
    """num_hidden_layers maps (S, A, L, L), row = asking token; None unless asked for."""


class Embeddings(nn.Module):
    """word + position + segment, then LayerNorm and dropout."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.type_vocab_size:
            self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None, positions: Tensor
    ) -> Tensor:
        x = self.word(input_ids) + self.position(positions)  # (N,) -> (N, H)
        if hasattr(self, "segment"):
            x = x + (
                self.segment.weight[0] if token_type_ids is None else self.segment(token_type_ids)
            )
        return dropout(self.norm(x), self.dropout, self.training)


class Layer(nn.Module):
    """Attention, then feed-forward; each followed by dropout, the residual, and LayerNorm."""

    def __init__(self, config: BertConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.ffn_in = nn.Linear(hidden, config.intermediate_size)
        self.ffn_out = nn.Linear(config.intermediate_size, hidden)
        self.ffn_norm = nn.LayerNorm(hidden, eps=eps)
        self.activation = ACTIVATION[config.hidden_act]
        self.dropout, self.attention_dropout = (
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        )

    def forward(
        self, x: Tensor, layout: Layout, attention: Attention | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        qkv = self.qkv(x).view(len(x), 3, self.heads, -1)  # (N, H) -> (N, 3, A, D)
        drop = self.attention_dropout if self.training else 0.0
        body = attention or choose_attention(qkv.device, qkv.dtype, drop)
        mixed, maps = body(*qkv.unbind(1), layout, drop), None  # (N, A, D)
        if isinstance(mixed, tuple):
            mixed, maps = mixed
        x = self.behind_attention(x, mixed)
        return x if maps is None else (x, maps)

    def behind_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """(N, H), (N, A, D) -> (N, H): the rest of the layer, every token by itself."""
        mixed = self.attention_out(mixed.reshape(len(x), -1))  # (N, A, D) -> (N, H)
        x = self.attention_norm(x + dropout(mixed, self.dropout, self.training))
        inner = self.ffn_out(self.activation(self.ffn_in(x)))  # (N, H) -> (N, F) -> (N, H)
        return self.ffn_norm(x + dropout(inner, self.dropout, self.training))


ACTIVATION = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


class BertEncoder(nn.Module):
    """Embeddings, layers and, where the config asks for it, the pooler.

    Args:
        config: the shape.
        attention: a function to use in place of the fastest body (see attention.py for the signature).
    """

    recompute = False
    """Whether training keeps only what goes into each layer and computes its inside again for the backward pass: memory
    of a layer instead of memory of all, for a third more time."""

    def __init__(self, config: BertConfig, attention: Attention | None = None):
        super().__init__()
        self.config, self.attention = config, attention
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        if config.pooler:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        lengths=None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encode a padded batch, or N packed tokens. Both run the same layers and give the same numbers.

        Args:
            input_ids: (B, L) padded, or (N,) packed.
            attention_mask: (B, L), nonzero on tokens, zero on padding; all tokens where None. Padded calls only.
            token_type_ids: like input_ids: 0 in the first segment, 1 in the second; all 0 where None.
            lengths: S lengths of the packed sequences, or their Layout. Packed calls only.
            output_hidden_states, output_attentions: fill these fields (the maps come from the reference attention).

        Raises:
            UserError: for sequences longer than the positions, and for a mask or lengths that do not fit the ids.
        """
        if input_ids.dim() == 2:
            return self._padded(
                input_ids, attention_mask, token_type_ids, output_hidden_states, output_attentions
            )
        layout = lengths if isinstance(lengths, Layout) else self._layout(lengths, input_ids)
        attention = reference_attention_with_maps if output_attentions else self.attention
        x = self.embeddings(input_ids, token_type_ids, layout.positions)  # (N,) -> (N, H)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            if self.recompute and self.training:
                x = checkpoint(layer, x, layout, attention, use_reentrant=False)
            else:
                x = layer(x, layout, attention)
            if output_attentions:
                x, maps = x
                attentions.append(maps)
            if output_hidden_states:
                hidden_states.append(x)
        pooled = (
            torch.tanh(self.pooler(x[layout.first_tokens])) if self.config.pooler else None
        )  # (S, H)
        return EncoderOutput(
            x,
            pooled,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )

    def fuse(self) -> None:
        """Let torch.compile fuse what stands behind attention in each layer: bias and GELU; bias, dropout, residual and
        norm. It is compiled once for all layers and batches, for any number of tokens; attention has kernels of its own.
        """
        for layer in self.layers:
            layer.behind_attention = torch.compile(layer.behind_attention, dynamic=True)

    def _layout(self, lengths, input_ids: Tensor) -> Layout:
        if lengths is None or sum(lengths) != len(input_ids) or min(lengths) < 1:
            raise UserError(
                f"packed input of {len(input_ids)} tokens needs lengths=[...], each at least 1, that sum to "
                f"{len(input_ids)}; got {lengths if lengths is None else f'a sum of {sum(lengths)}'}"
            )
        if max(lengths) > self.config.max_position_embeddings:
            raise UserError(
                f"a sequence has {max(lengths)} tokens, but this model has "
                f"{self.config.max_position_embeddings} positions; cut it into shorter windows"
            )
        return Layout.of(lengths, input_ids.device)

    def _padded(self, input_ids, attention_mask, token_type_ids, *flags) -> EncoderOutput:
        """Take the padding out, encode, put it back."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise UserError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; "
                "they must be the same, 1 on tokens and 0 on padding"
            )
        keep = attention_mask.bool()  # (B, L)
        layout = self._layout(keep.sum(1).tolist(), input_ids[keep])
        segments = None if token_type_ids is None else token_type_ids[keep]  # (N,)
        out = self(
            input_ids[keep],
            token_type_ids=segments,
            lengths=layout,
            output_hidden_states=flags[0],
            output_attentions=flags[1],
        )

        def back(x: Tensor) -> Tensor:  # (N, H) -> (B, L, H)
            return x.new_zeros(*input_ids.shape, x.shape[-1]).index_put(
                (keep.nonzero(as_tuple=True)), x
            )

        # A mask may have holes or padding on the left, so the maps (over positions without padding) stay as they are.
        return EncoderOutput(
            back(out.last_hidden_state),
            out.pooled,
            out.hidden_states and tuple(back(x) for x in out.hidden_states),
            out.attentions,
        )


def init_weights(module: nn.Module, std: float) -> None:
    """BERT's initialisation: weights from a normal of this standard deviation, biases zero, norms one."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
