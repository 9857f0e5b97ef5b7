"""Vectors of texts, from Python and for `python -m bertqa.embed`.

A sequence  [CLS] text [SEP]  has a vector for each token, of each layer. Pooling takes the vector of [CLS] ("cls"), the
mean over all tokens ("mean"), tanh(dense([CLS])) ("pooler"), or all vectors ("none").

R texts with N tokens in all, S sequences in a batch, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from bertqa.data.text_windows import text_windows
from bertqa.data.tokens import running_sum
from bertqa.device import autocast
from bertqa.errors import UserError
from bertqa.inference import forward_all

POOLS = ("cls", "pooler", "mean", "none")


@dataclass
class Vectors:
    """The vectors of R texts, in their order."""

    vectors: np.ndarray
    """(R, H) float32; of all layers (R, layers + 1, H), embeddings first. With pool "none" N takes the place of R."""
    rows: np.ndarray | None
    """(R+1,) int64, with pool "none" only: text r has the vectors rows[r] : rows[r+1], [CLS] first and [SEP] last."""
    spans: np.ndarray | None
    """(N, 2) int32, with pool "none" only: where a token begins and ends in its text; -1 for [CLS] and [SEP]."""
    tokens: int
    """N, including [CLS] and [SEP]."""
    cut: int
    """Number of texts that were longer than the limit and lost their end."""


def embed_texts(
    encoder,
    tokenizer,
    texts: Sequence[str],
    *,
    pool: str = "mean",
    layer: int | str = -1,
    normalize: bool = False,
    max_length: int | None = None,
    dtype=None,
    progress: str | None = None,
) -> Vectors:
    """Embed texts in packed batches, without padding, longest first.

    Args:
        encoder: a BertEncoder in eval mode, on the device to compute on (`load_encoder`; prepack.pack makes it faster).
        tokenizer: its WordPiece.
        pool: "cls", "mean", "pooler" or "none", as above.
        layer: index of the hidden states, 0 the embeddings, -1 the last layer; or "all".
        normalize: scale every vector to length 1.
        max_length: most tokens of a text, including [CLS] and [SEP]; None: as many as the encoder has positions.
        dtype: to compute in, such as torch.bfloat16 on a GPU; None: float32. The vectors are always float32.
        progress: label of a progress bar; None: no bar.

    Raises:
        UserError: for a pool or a layer that the encoder does not have, or a length that it cannot read.
    """
    config = encoder.config
    device = next(encoder.parameters()).device
    if max_length is None:
        max_length = config.max_position_embeddings
    check(config, pool, layer, max_length)
    label = None if progress is None else f"{progress}: tokens"
    windows = text_windows(texts, tokenizer, max_length=max_length, progress=label)
    rows = running_sum(windows.lengths)  # (R+1,) tokens before each text
    tokens = int(rows[-1])
    per_token = pool == "none"
    shape = [tokens if per_token else len(texts), config.hidden_size]
    if layer == "all":
        shape.insert(1, config.num_hidden_layers + 1)
    vectors = np.empty(shape, np.float32)
    compute = partial(_compute, encoder, pool, layer, normalize)
    cast = autocast(device, dtype or torch.float32)
    batches = forward_all(
        compute, windows, device, model=encoder, autocast=cast, progress=progress, unit=" texts"
    )
    for which, (found,) in batches:
        if per_token:
            put_rows(vectors, rows, which, found)
        else:
            vectors[which] = found
    made = Vectors(vectors, None, None, tokens=tokens, cut=windows.cut)
    if per_token:
        made.rows = rows
        made.spans = token_spans(windows.texts, rows)
    return made


def _compute(encoder, pool: str, layer: int | str, normalize: bool, batch, layout) -> tuple:
    """Return the vectors of a batch in a tuple, for `forward_all`."""
    out = encoder(
        batch.input_ids,
        token_type_ids=batch.token_type_ids,
        lengths=layout,
        output_hidden_states=layer != -1,
    )
    found = pooled(out, layout, pool, layer)
    if normalize:
        found = F.normalize(found, dim=-1)
    return (found,)


def put_rows(vectors: np.ndarray, rows: np.ndarray, which: np.ndarray, found: np.ndarray) -> None:
    """Copy the token vectors of the texts `which`, text after text in `found`, to their rows of `vectors`."""
    begin = 0
    for row in which:
        size = rows[row + 1] - rows[row]
        vectors[rows[row] : rows[row + 1]] = found[begin : begin + size]
        begin += size


def pooled(out, layout, pool: str, layer: int | str):
    """Pool an EncoderOutput of N packed tokens.

    Returns:
        (S, H), or (S, layers + 1, H) for all layers; with pool "none" N takes the place of S.
    """
    if pool == "pooler":
        return out.pooled.float()
    if layer == -1:
        x = out.last_hidden_state  # (N, H)
    elif layer == "all":
        x = torch.stack(out.hidden_states, 1)  # (N, layers + 1, H)
    else:
        x = out.hidden_states[layer]  # (N, H)
    x = x.float()
    if pool == "cls":
        return x[layout.first_tokens]
    if pool == "none":
        return x
    # The mean of each sequence: of tokens x0 x1 x2 in sequences of lengths 2 and 1, it is (x0 + x1) / 2 and x2.
    total = x.new_zeros(len(layout.lengths), *x.shape[1:])  # (S, H) or (S, layers + 1, H)
    total.index_add_(0, layout.sequence, x)
    tokens = layout.cu_seqlens.diff()  # (S,)
    return total / tokens.view(-1, *[1] * (x.dim() - 1))


def token_spans(tokens, rows: np.ndarray) -> np.ndarray:
    """Return where each token begins and ends in its text, (N, 2) int32; -1 for [CLS] and [SEP]."""
    spans = np.full((int(rows[-1]), 2), -1, np.int32)
    # Texts of 4 and 3 tokens,  [CLS] a b [SEP] [CLS] c [SEP], have rows 0 4 7 and own - 1 1 - - 1 -
    own = np.ones(len(spans), bool)  # the tokens that are part of a text
    own[rows[:-1]] = False  # [CLS]
    own[rows[1:] - 1] = False  # [SEP]
    spans[own] = np.stack([tokens.starts, tokens.ends], 1)
    return spans


def check(config, pool: str, layer: int | str, max_length: int) -> None:
    """Raise UserError for settings that this encoder cannot serve, naming all problems at once."""
    layers = config.num_hidden_layers
    problems = []
    if pool not in POOLS:
        problems.append(f"pool is {pool!r}, use {', '.join(POOLS)}")
    if layer != "all" and not (isinstance(layer, int) and -layers - 1 <= layer <= layers):
        problems.append(
            f"layer is {layer!r}, but this encoder has layers 1 to {layers}, and 0 for the embeddings; use one "
            f"of these, -1 to {-layers - 1} from the end, or all"
        )
    if pool == "pooler" and layer not in (-1, layers):
        problems.append(
            f"pool pooler stands on the last layer, but layer is {layer!r}; leave it out"
        )
    if pool == "pooler" and not config.pooler:
        problems.append(
            "this encoder has no pooler (a question answering model has none, nor has DistilBERT); use pool cls "
            "or mean, or the checkpoint that it was fine-tuned from"
        )
    if max_length < 3:
        problems.append(f"max_length is {max_length}, use 3 or more")
    elif config.longest is not None and max_length > config.longest:
        problems.append(
            f"max_length is {max_length}, use 3 to {config.longest}, this encoder's positions"
        )
    if problems:
        raise UserError("; ".join(problems))
