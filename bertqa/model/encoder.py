"""The BERT encoder, in the order in which data flows through it (Devlin et al. 2018; post-norm transformer layers).

S sequences in a batch, N tokens in all of them, B rows and L columns of a padded batch, H hidden size, A heads,
D = H / A head size, F feed-forward size, V vocabulary size.

Inside, a batch is N tokens in a row without padding: embedding, Linear, LayerNorm and GELU treat every token alike,
whichever sequence it belongs to. Only attention distinguishes sequences; it is one function (attention.py). A padded
batch is packed on the way in and padded again on the way out (padding.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertqa.errors import UserError
from bertqa.model.attention import Attention, Layout, attention_of_layers, fastest_attention
from bertqa.model.config import BertConfig, misfits
from bertqa.model.dropout import dropout
from bertqa.model.padding import Packing, packing_of


class EncoderOutput(NamedTuple):
    """Result of the encoder: (N, ...) after a packed call; (B, L, ...) after a padded one, zero on padding."""

    last_hidden_state: Tensor
    """(N, H) or (B, L, H)."""
    pooled: Tensor | None
    """(S, H): tanh(dense([CLS])); None for a model without a pooler."""
    hidden_states: tuple[Tensor, ...] | None
    """num_hidden_layers + 1 tensors like last_hidden_state, the embeddings first; None unless requested."""
    attentions: tuple[Tensor, ...] | None
    """num_hidden_layers attention maps (S, A, L, L), a row per query, zero on padding; None unless requested."""


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, then LayerNorm and dropout."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = None
        if config.has_positions:
            self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segment = None
        if config.type_vocab_size:
            self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, words: Tensor, segments: Tensor | None, positions: Tensor) -> Tensor:
        """Token ids (N,), or word vectors (N, H) instead of them; segments (N,); positions (N,) -> (N, H)."""
        x = self.word(words) if words.dim() == 1 else words  # (N, H)
        if self.position is not None:
            x = x + self.position(positions)
        if self.segment is not None and segments is None:
            x = x + self.segment.weight[0]
        elif self.segment is not None:
            x = x + self.segment(segments)
        return dropout(self.norm(x), self.dropout, self.training)


class Layer(nn.Module):
    """Self-attention, then the feed-forward network; each is followed by dropout, residual and LayerNorm."""

    def __init__(self, config: BertConfig):
        super().__init__()
        hidden = config.hidden_size
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(hidden, config.intermediate_size)
        self.ffn_out = nn.Linear(config.intermediate_size, hidden)
        self.ffn_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.activation = ACTIVATION[config.hidden_act]
        self.dropout = config.hidden_dropout_prob
        self.attention_dropout = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, layout: Layout, attention: Attention | None = None) -> Tensor:
        """(N, H) -> (N, H). Where `attention` is None, the fastest function for this device is used."""
        query, key, value, residual = self.before_attention(x)
        drop = self.attention_dropout if self.training else 0.0
        attend = attention or fastest_attention(query, layout, drop)
        mixed = attend(query, key, value, layout, drop)  # (N, A, D)
        if isinstance(mixed, tuple):
            mixed, _ = mixed  # attention maps, which were not requested
        return self.behind_attention(residual, mixed)

    def before_attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, H) -> query, key, value (N, A, D) each, by one matrix product; and x itself, for the residual.

        x is returned because fused.before_attention, which replaces this method, routes the residual's gradient.
        """
        qkv = self.qkv(x).view(x.shape[0], 3, self.heads, -1)  # (N, 3H) -> (N, 3, A, D)
        query, key, value = qkv.unbind(1)
        return query, key, value, x

    def behind_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, token by token: x (N, H) and attention's result (N, A, D) -> (N, H)."""
        mixed = self.attention_out(mixed.reshape(x.shape[0], -1))  # (N, A, D) -> (N, H)
        x = self.attention_norm(x + dropout(mixed, self.dropout, self.training))
        inner = self.ffn_out(self.activation(self.ffn_in(x)))  # (N, H) -> (N, F) -> (N, H)
        return self.ffn_norm(x + dropout(inner, self.dropout, self.training))


def gelu_tanh(x: Tensor) -> Tensor:
    """Compute Google's tanh approximation of GELU. Not a lambda, because models are pickled for other processes."""
    return F.gelu(x, approximate="tanh")


ACTIVATION = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "relu": F.relu}


class BertEncoder(nn.Module):
    """Embeddings, transformer layers and, where the config has one, the pooler.

    Args:
        config: sizes of the encoder.
        attention: a function to use instead of the fastest one (its signature: attention.py), or a list with one per
            layer.
    """

    recompute = False
    """Activation checkpointing: training keeps the input of each layer only and recomputes the rest in the backward
    pass. Memory of one layer instead of all, for a third more time."""

    def __init__(
        self, config: BertConfig, attention: Attention | Sequence[Attention] | None = None
    ):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = None
        if config.pooler:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self._config = config
        self.apply(lambda module: init_weights(module, config.initializer_range))
        # Assigned last: it may be a module of the user's, which init_weights must not touch.
        self.attention = attention

    @property
    def config(self) -> BertConfig:
        """The configuration. A new one may be assigned if it fits the parameters; dropout changes at once."""
        return self._config

    @config.setter
    def config(self, config: BertConfig) -> None:
        problems = misfits(config, self)
        if problems:
            raise UserError(
                f"this config does not describe the encoder: {'; '.join(problems)}; build a model with it, or change the "
                "encoder first (bertqa.model.surgery)"
            )
        self._config = config
        self.embeddings.dropout = config.hidden_dropout_prob
        for layer in self.layers:
            layer.dropout = config.hidden_dropout_prob
            layer.attention_dropout = config.attention_probs_dropout_prob

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
    ) -> EncoderOutput:
        """Encode a padded batch or N packed tokens. Both ways run the same layers and give the same numbers.

        Args:
            input_ids: (B, L) padded, or (N,) packed.
            attention_mask: (B, L), nonzero on tokens, zero on padding; None: no padding. Padded calls only.
            token_type_ids: like input_ids: 0 in the first segment, 1 in the second; None: all 0. An encoder without
                segments (DistilBERT) ignores them.
            inputs_embeds: (B, L, H) or (N, H) word vectors instead of input_ids.
            lengths: lengths of the S packed sequences, or their Layout. Packed calls only.
            output_hidden_states, output_attentions: whether to return these too. Attention maps come from the reference
                attention, or from your own function, which must then return (mixed, maps).

        Raises:
            UserError: if a sequence is longer than the position embeddings, an id has no embedding, or the mask or the
                lengths do not fit the batch.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        words = input_ids if inputs_embeds is None else inputs_embeds
        shape = words.shape if inputs_embeds is None else words.shape[:-1]  # (N,) or (B, L)
        packing = packing_of(shape, words.device, attention_mask, lengths)
        layout = packing.layout
        self._refuse_too_long(layout.longest)

        x = self._embed(packing, words, token_type_ids)  # (N, H)
        hidden_states = [x] if output_hidden_states else None
        maps = [] if output_attentions else None  # filled by the functions while the layers run
        functions = attention_of_layers(self.attention, len(self.layers), maps)
        for layer, attention in zip(self.layers, functions, strict=True):
            if self.recompute and self.training:
                x = checkpoint(layer, x, layout, attention, use_reentrant=False)
            else:
                x = layer(x, layout, attention)
            if output_hidden_states:
                hidden_states.append(x)
        pooled = None
        if self.pooler is not None:
            pooled = torch.tanh(self.pooler(x[layout.first_tokens]))  # (N, H) -> (S, H)

        # Packed calls get packed tensors; padded calls get (B, L, ...).
        if output_hidden_states:
            hidden_states = tuple(packing.back(state) for state in hidden_states)
        if output_attentions:
            maps = tuple(packing.maps_back(layer_maps) for layer_maps in maps)
        return EncoderOutput(packing.back(x), pooled, hidden_states, maps)

    def _embed(self, packing: Packing, words: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return the embeddings (N, H) of a batch's tokens."""
        segments = None
        if token_type_ids is not None:
            segments = packing.take(token_type_ids, "token_type_ids")  # (N,)
        words = packing.take(words)  # (N,) or (N, H)
        try:
            return self.embeddings(words, segments, packing.layout.positions)
        except IndexError as error:
            raise UserError(self._id_without_embedding(words, segments)) from error

    def fuse(self) -> None:
        """Let torch.compile fuse what follows attention in each layer: bias and GELU; bias, dropout, residual and norm.

        One compilation serves all layers and any number of tokens. Attention has kernels of its own.
        """
        for layer in self.layers:
            layer.behind_attention = torch.compile(layer.behind_attention, dynamic=True)

    def _refuse_too_long(self, longest: int) -> None:
        """Raise a UserError for sequences longer than the position embeddings."""
        if self.embeddings.position is None or torch.compiler.is_compiling():
            return
        most = self.embeddings.position.num_embeddings
        if longest > most:
            raise UserError(
                f"a sequence has {longest} tokens, but this model has {most} positions; cut it into shorter windows"
            )

    def _id_without_embedding(self, words: Tensor, segments: Tensor | None) -> str:
        """Describe the first id that is no row of its embedding. Called only after a look-up has failed."""
        tables = [("input_ids", words, self.embeddings.word)]
        if segments is not None and self.embeddings.segment is not None:
            tables.append(("token_type_ids", segments, self.embeddings.segment))
        for name, ids, table in tables:
            wrong = ids[(ids < 0) | (ids >= table.num_embeddings)]
            if len(wrong):
                known = f"0 to {table.num_embeddings - 1}"
                return f"{name} has {int(wrong[0])}; this model knows {known}"
        return "the Layout has positions beyond those of this model"


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the encoder of a model with a head; an encoder is returned as it is."""
    return getattr(model, "encoder", model)


def init_weights(module: nn.Module, std: float) -> None:
    """Initialise a module as BERT does: weights from a normal distribution with this standard deviation, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
