"""BERT's encoder, whole, in the order in which data flows through it (Devlin et al. 2018; post-norm transformer layers).

S sequences in a batch, N tokens in all of them, B rows and L columns of a padded batch, H hidden size, A heads,
D = H / A head size, F feed-forward size, V vocabulary.

Inside, a batch is N tokens in a row, without padding: embedding, linear, norm and GELU do not care which sequence a
token belongs to. Only attention does, and it is one function (attention.py). Padded batches, as most code has them, are
taken out of their padding before and put back behind (padding.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertqa.errors import UserError
from bertqa.model.attention import Attention, Layout, bodies_of, choose_attention
from bertqa.model.config import BertConfig, misfits
from bertqa.model.dropout import dropout
from bertqa.model.padding import Packing, packing_of


class EncoderOutput(NamedTuple):
    """What the encoder returns, always. (N, ...) after a packed call, (B, L, ...) after a padded one, zero on padding."""

    last_hidden_state: Tensor
    """(N, H) or (B, L, H)."""
    pooled: Tensor | None
    """(S, H): tanh(dense([CLS])); None where the model has no pooler."""
    hidden_states: tuple[Tensor, ...] | None
    """num_hidden_layers + 1 tensors like last_hidden_state, the embeddings first; None unless asked for."""
    attentions: tuple[Tensor, ...] | None
    """num_hidden_layers maps (S, A, L, L), row = asking token, zero on padding; None unless asked for."""


class Embeddings(nn.Module):
    """word + position + segment, then LayerNorm and dropout."""

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

    def forward(self, words: Tensor, token_type_ids: Tensor | None, positions: Tensor) -> Tensor:
        """(N,) ids, or (N, H) vectors in their place, with segments (N,) and positions (N,) -> (N, H)."""
        x = self.word(words) if words.dim() == 1 else words  # (N, H)
        if self.position is not None:
            x = x + self.position(positions)
        if self.segment is not None and token_type_ids is None:
            x = x + self.segment.weight[0]
        elif self.segment is not None:
            x = x + self.segment(token_type_ids)
        return dropout(self.norm(x), self.dropout, self.training)


class Layer(nn.Module):
    """Attention, then feed-forward; each followed by dropout, the residual, and LayerNorm."""

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
        """(N, H) -> (N, H), by the fastest attention where none is given."""
        query, key, value, x = self.before_attention(x)
        drop = self.attention_dropout if self.training else 0.0
        body = attention or _fastest_attention(query, layout, drop)
        mixed = body(query, key, value, layout, drop)  # (N, A, D)
        if isinstance(mixed, tuple):
            mixed, _ = mixed  # maps that nobody asked for
        return self.behind_attention(x, mixed)

    def before_attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, H) -> (N, A, D) each: queries, keys and values, in one product instead of three; and x, for the residual."""
        qkv = self.qkv(x).view(x.shape[0], 3, self.heads, -1)  # (N, 3H) -> (N, 3, A, D)
        return *qkv.unbind(1), x

    def behind_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """(N, H), (N, A, D) -> (N, H): the rest of the layer, every token by itself."""
        mixed = self.attention_out(mixed.reshape(x.shape[0], -1))  # (N, A, D) -> (N, H)
        x = self.attention_norm(x + dropout(mixed, self.dropout, self.training))
        inner = self.ffn_out(self.activation(self.ffn_in(x)))  # (N, H) -> (N, F) -> (N, H)
        return self.ffn_norm(x + dropout(inner, self.dropout, self.training))


def _fastest_attention(query: Tensor, layout: Layout, dropout: float) -> Attention:
    """The fastest body for this layer's tensors and this kind of layout."""
    is_packed = isinstance(layout, Layout)  # and not padding.Rows
    # Lengths that are numbers would be compiled in: a graph for each batch.
    has_lengths = not torch.compiler.is_compiling() and layout.lengths is not None
    return choose_attention(query.device, query.dtype, dropout, has_lengths, is_packed)


def gelu_tanh(x: Tensor) -> Tensor:
    """Google's approximation. A function with a name and no lambda: models are pickled when they go to other processes."""
    return F.gelu(x, approximate="tanh")


ACTIVATION = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "relu": F.relu}


class BertEncoder(nn.Module):
    """Embeddings, layers and, where the config asks for it, the pooler.

    Args:
        config: the shape.
        attention: a function to use in place of the fastest body (see attention.py for the signature), or a list with one
            for each layer.
    """

    recompute = False
    """Whether training keeps only what goes into each layer and computes its inside again for the backward pass: memory
    of a layer instead of memory of all, for a third more time."""

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
        # Last: attention of one's own may be a module, which is not for us to initialise.
        self.attention = attention

    @property
    def config(self) -> BertConfig:
        """What the parameters are. It may be set: dropout changes at once; the rest must describe what is there."""
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
        """Encode a padded batch, or N packed tokens. Both run the same layers and give the same numbers.

        Args:
            input_ids: (B, L) padded, or (N,) packed.
            attention_mask: (B, L), nonzero on tokens, zero on padding; all tokens where None. Padded calls only.
            token_type_ids: like input_ids: 0 in the first segment, 1 in the second; all 0 where None. An encoder without
                segments (DistilBERT) does not look at them.
            inputs_embeds: (B, L, H) or (N, H) vectors in the place of the word embeddings of input_ids.
            lengths: S lengths of the packed sequences, or their Layout. Packed calls only.
            output_hidden_states, output_attentions: fill these fields (the maps come from the reference attention, or from
                your own attention, which then returns (mixed, maps)).

        Raises:
            UserError: for sequences longer than the positions, for ids outside of the embeddings, and for a mask or lengths
                that do not fit the batch.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            words = input_ids
            shape = words.shape  # (N,) or (B, L)
        else:
            words = inputs_embeds
            shape = words.shape[:-1]  # (N,) or (B, L), without H
        packing = packing_of(shape, words.device, attention_mask, lengths)
        self._check_longest(packing.layout.longest)

        x = self._embed(packing, words, token_type_ids)  # (N, H)
        hidden_states = [x]
        maps: list[Tensor] = []
        bodies = bodies_of(self.attention, len(self.layers), maps if output_attentions else None)
        for layer, body in zip(self.layers, bodies, strict=True):
            if self.recompute and self.training:
                x = checkpoint(layer, x, packing.layout, body, use_reentrant=False)
            else:
                x = layer(x, packing.layout, body)
            if output_hidden_states:
                hidden_states.append(x)
        pooled = None
        if self.pooler is not None:
            pooled = torch.tanh(self.pooler(x[packing.layout.first_tokens]))  # (N, H) -> (S, H)

        return EncoderOutput(
            packing.back(x),  # (N, H), or (B, L, H) after a padded call
            pooled,
            tuple(packing.back(x) for x in hidden_states) if output_hidden_states else None,
            tuple(packing.maps_back(x) for x in maps) if output_attentions else None,
        )

    def _embed(self, packing: Packing, words: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """(N, H) embeddings of a batch's tokens."""
        segments = None
        if token_type_ids is not None:
            segments = packing.take(token_type_ids, "token_type_ids")  # (N,)
        words = packing.take(words)  # (N,) or (N, H)
        try:
            return self.embeddings(words, segments, packing.layout.positions)
        except IndexError as error:
            raise UserError(self._outside(words, segments)) from error

    def fuse(self) -> None:
        """Let torch.compile fuse what stands behind attention in each layer: bias and GELU; bias, dropout, residual and
        norm. It is compiled once for all layers and batches, for any number of tokens; attention has kernels of its own.
        """
        for layer in self.layers:
            layer.behind_attention = torch.compile(layer.behind_attention, dynamic=True)

    def _check_longest(self, longest: int) -> None:
        if self.embeddings.position is None or torch.compiler.is_compiling():
            return
        most = self.embeddings.position.num_embeddings
        if longest > most:
            raise UserError(
                f"a sequence has {longest} tokens, but this model has {most} positions; cut it into shorter windows"
            )

    def _outside(self, words: Tensor, segments: Tensor | None) -> str:
        """Which ids are not rows of their embedding; asked only once a look-up has failed."""
        tables = [("input_ids", words, self.embeddings.word)]
        if segments is not None and self.embeddings.segment is not None:
            tables.append(("token_type_ids", segments, self.embeddings.segment))
        for name, ids, table in tables:
            wrong = ids[(ids < 0) | (ids >= table.num_embeddings)]
            if len(wrong):
                return (
                    f"{name} has {int(wrong[0])}; this model knows 0 to {table.num_embeddings - 1}"
                )
        return "the Layout has positions beyond those of this model"


def init_weights(module: nn.Module, std: float) -> None:
    """BERT's initialisation: weights from a normal of this standard deviation, biases zero, norms one."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
