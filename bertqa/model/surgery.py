"""Change the shape of a trained encoder, and its config with it: fewer layers, another vocabulary, other positions.

Each function takes an encoder or a model with a head, changes it in place, and reports through `say` what is lost.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from bertqa.errors import UserError
from bertqa.files import read_object, write_json, write_text
from bertqa.folders import staged
from bertqa.model.encoder import encoder_of, init_weights
from bertqa.model.vocabulary import check_tokens, read_vocab, tokens_by_id


def keep_layers(model: nn.Module, layers: Sequence[int], say: Callable = print) -> None:
    """Keep these layers, counted from 0, in this order.

    DistilBERT was initialised with every second layer of BERT (Sanh et al. 2019); without further training, keeping the
    lower layers is best (Sajjad et al. 2020).
    """
    encoder = encoder_of(model)
    count = len(encoder.layers)
    layers = [int(layer) for layer in layers]
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(count)):
        raise UserError(f"layers to keep are {layers}; give each once, of 0 to {count - 1}")
    size = sum(p.numel() for p in encoder.layers[0].parameters())  # the same for all layers
    encoder.layers = nn.ModuleList(encoder.layers[layer] for layer in layers)
    if isinstance(
        encoder.attention, Iterable
    ):  # one function per layer, which stays with its layer
        functions = list(encoder.attention)
        encoder.attention = [functions[layer] for layer in layers]
    encoder.config = encoder.config.replace(num_hidden_layers=len(layers))
    lost = [layer for layer in range(count) if layer not in layers]
    say(f"layers {lost} of {count} are gone, {len(lost) * size:,} parameters")


def resize_positions(model: nn.Module, count: int, say: Callable = print) -> None:
    """Give the encoder `count` position embeddings: its first ones, followed by copies of them from the first on.

    Longformer was initialised with such copies (Beltagy et al. 2020); they need training.
    """
    encoder = encoder_of(model)
    old = encoder.embeddings.position
    if old is None:
        raise UserError("this encoder has no positions (position_embedding_type none)")
    if count < 1:
        raise UserError(f"positions are {count}; give 1 or more")
    # from three positions to five: 0 1 2 0 1
    rows = torch.arange(count, device=old.weight.device) % old.num_embeddings
    encoder.embeddings.position = nn.Embedding.from_pretrained(
        old.weight.detach()[rows], freeze=False
    )
    encoder.config = encoder.config.replace(max_position_embeddings=count)
    lost = max(0, old.num_embeddings - count)
    copied = max(0, count - old.num_embeddings)
    say(f"positions {old.num_embeddings} -> {count}: {lost} lost, {copied} copied")


def resize_vocabulary(
    model: nn.Module,
    tokens: Sequence[str],
    tokenizer: str | Path,
    out: str | Path,
    say: Callable = print,
) -> None:
    """Give the encoder the vocabulary `tokens`, in the order of their ids, and write tokenizer files for it.

    Tokens of the old vocabulary keep their embeddings; new ones are initialised as BERT's are. A new token in brackets,
    "[PLACE]", becomes a special token, which the tokenizer never splits. To add to a vocabulary:
    resize_vocabulary(model, [*vocabulary(folder), "covid", "[PLACE]"], ...).

    Args:
        tokenizer: the folder with the tokenizer files of the model's present vocabulary.
        out: a folder for the new files, to be passed to save(..., tokenizer_from=out).
    """
    encoder = encoder_of(model)
    tokenizer = Path(tokenizer)
    out = Path(out)
    old_rows = {token: row for row, token in enumerate(vocabulary(tokenizer))}
    _check_new_tokens(tokens, old_rows, tokenizer, out)

    old = encoder.embeddings.word
    new = nn.Embedding(len(tokens), old.embedding_dim).to(old.weight)
    init_weights(new, encoder.config.initializer_range)
    kept = [row for row, token in enumerate(tokens) if token in old_rows]  # rows of the new matrix
    with torch.no_grad():
        new.weight[kept] = old.weight[[old_rows[tokens[row]] for row in kept]]
    encoder.embeddings.word = new
    encoder.config = encoder.config.replace(vocab_size=len(tokens))
    _write_tokenizer(tokenizer, out, tokens)

    lost = len(old_rows) - len(kept)
    drawn = len(tokens) - len(kept)
    say(
        f"vocabulary {len(old_rows):,} -> {len(tokens):,}: {lost:,} lost, {drawn:,} drawn at random"
    )


def _check_new_tokens(
    tokens: Sequence[str], old_rows: dict[str, int], tokenizer: Path, out: Path
) -> None:
    """Raise a UserError for a vocabulary that `resize_vocabulary` cannot give a model."""
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if list(tokens).count(token) > 1)
        raise UserError(f"the token {twice!r} stands twice in the new vocabulary")
    check_tokens(out, dict(enumerate(tokens)), len(tokens))
    special = [token for token in tokens if token not in old_rows and _is_special(token)]
    if special and not (tokenizer / "tokenizer.json").exists():
        raise UserError(
            f"{tokenizer}: has no tokenizer.json, which {special[0]!r} needs; convert the checkpoint again"
        )


def vocabulary(folder: str | Path) -> list[str]:
    """Return the tokens of a folder's tokenizer in the order of their ids; "[no token 7]" if id 7 has none."""
    folder = Path(folder)
    ready = folder / "tokenizer.json"
    if not ready.exists():
        return read_vocab(folder / "vocab.txt")
    by_id = tokens_by_id(ready, read_object(ready))
    return [by_id.get(row, f"[no token {row}]") for row in range(max(by_id) + 1)]


def _is_special(token: str) -> bool:
    """Whether a token is a special token in brackets and no piece of text."""
    return token.startswith("[") and token.endswith("]") and len(token) > 2


def _write_tokenizer(source: Path, out: Path, tokens: Sequence[str]) -> None:
    """Write the tokenizer files of the folder `source` with another vocabulary to the folder `out`."""
    with staged(out) as new:
        write_text(new / "vocab.txt", "".join(f"{token}\n" for token in tokens))
        if (source / "tokenizer_config.json").exists():
            shutil.copyfile(source / "tokenizer_config.json", new / "tokenizer_config.json")
        if (source / "tokenizer.json").exists():
            fast = read_object(source / "tokenizer.json")
            _renumber(fast, {token: row for row, token in enumerate(tokens)})
            write_json(new / "tokenizer.json", fast)


def _renumber(fast: dict, ids: dict[str, int]) -> None:
    """Replace the vocabulary of a tokenizer.json, and the ids of its added tokens and of its post-processor."""
    before = set(fast["model"]["vocab"])
    fast["model"]["vocab"] = ids
    added = []
    for entry in fast["added_tokens"]:
        token = entry["content"]
        before.add(token)
        if token in ids:
            added.append({**entry, "id": ids[token]})
    for token, row in ids.items():
        # New tokens only: an old one in brackets that was no special token stays as it was.
        if _is_special(token) and token not in before:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            added.append({"id": row, "content": token, **flags, "special": True})
    fast["added_tokens"] = sorted(added, key=lambda entry: entry["id"])

    # The post-processor puts [CLS] and [SEP] around a text. There are two kinds.
    post = fast.get("post_processor") or {}
    for token, entry in (post.get("special_tokens") or {}).items():  # TemplateProcessing
        entry["ids"] = [ids[token]]
    for side in ("cls", "sep"):  # BertProcessing: ["[CLS]", 101]
        if side in post:
            token, _ = post[side]
            post[side] = [token, ids[token]]
