"""The shape of a BERT, with Hugging Face's field names so that a config.json needs no dictionary."""

import dataclasses
from dataclasses import dataclass

from bertqa.errors import UserError

QA = "question-answering"
CLASSES = "sequence-classification"
"""The heads, as config.json names them; null is the encoder alone."""

CHOICES = {
    "hidden_act": ("gelu", "gelu_tanh", "relu"),
    "position_embedding_type": ("absolute", "none"),
    "model_type": ("bert", "distilbert"),
}
"""Fields that are one of a few words."""

LARGEST = {
    "vocab_size": 10_000_000,
    "hidden_size": 100_000,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 100_000,
    "intermediate_size": 1_000_000,
    "max_position_embeddings": 10_000_000,
    "type_vocab_size": 100_000,
}
"""Sizes beyond these are no model's; a file that states one must not make us build it."""


@dataclass(frozen=True)
class BertConfig:
    """Everything that decides the parameters of an encoder and what they compute. Defaults are bert-base-uncased's."""

    model_type: str = "bert"
    """"bert" or "distilbert": the same layers; only their Hugging Face names and the classification head differ."""
    vocab_size: int = 30522
    """V, rows of the word embedding."""
    hidden_size: int = 768
    """H, width of a token."""
    num_hidden_layers: int = 12
    """Layers of attention and feed-forward."""
    num_attention_heads: int = 12
    """A; the head size is D = H / A."""
    intermediate_size: int = 3072
    """F, inner width of the feed-forward."""
    max_position_embeddings: int = 512
    """Longest sequence, in tokens. Without position embeddings the encoder takes any; this is then what the verbs go by."""
    type_vocab_size: int = 2
    """Segments; 0 where the architecture has none (DistilBERT)."""
    hidden_act: str = "gelu"
    """"gelu" (exact, with erf), "gelu_tanh" (Google's approximation) or "relu"."""
    layer_norm_eps: float = 1e-12
    """Added to the variance inside LayerNorm."""
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings and after each sub-layer."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on attention probabilities; the fast attention bodies have none (see attention.py)."""
    initializer_range: float = 0.02
    """Standard deviation of freshly drawn weights."""
    pooler: bool = False
    """Whether there is a dense + tanh over [CLS]; question answering does not use one."""
    position_embedding_type: str = "absolute"
    """"absolute", or "none" for attention that knows by itself where tokens stand (ALiBi, rotary)."""

    def __post_init__(self):
        problems = [*self._wrong_sizes(), *self._wrong_numbers()]
        # only of numbers that are some: 768 % 0 and 768 % "12" would be errors of their own
        if not problems and self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                problems.append(f"{name} is {value!r}, known are {', '.join(known)}")
        if problems:
            raise UserError("model configuration: " + "; ".join(problems))

    def _wrong_sizes(self) -> list[str]:
        problems = []
        for name, most in LARGEST.items():
            size = getattr(self, name)
            least = 0 if name == "type_vocab_size" else 1
            # bool is an int to Python, and no size
            if type(size) is not int:
                problems.append(f"{name} is {size!r}, it must be a whole number")
            elif size < least:
                problems.append(
                    f"{name} is {size}, it must be {'positive' if least else '0 or more'}"
                )
            elif size > most:
                problems.append(f"{name} is {size}, and no model's is over {most:,}")
        return problems

    def _wrong_numbers(self) -> list[str]:
        problems = []
        for name in (
            "layer_norm_eps",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "initializer_range",
        ):
            value = getattr(self, name)
            # written so that NaN is refused too
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                problems.append(f"{name} is {value!r}, it must be a number from 0 to 1")
        return problems

    @property
    def has_positions(self) -> bool:
        """Whether there is an embedding of positions."""
        return self.position_embedding_type == "absolute"

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence that the encoder takes; None where it has no positions, and takes any."""
        return self.max_position_embeddings if self.has_positions else None

    def replace(self, **changes) -> "BertConfig":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


CHANGEABLE = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
"""Fields that decide neither the parameters nor what they compute in eval mode."""


def misfits(config: BertConfig, encoder) -> list[str]:
    """What a config says otherwise than an encoder is, one phrase each; [] where it describes the encoder."""
    embeddings = encoder.embeddings
    is_there = {
        "vocab_size": embeddings.word.num_embeddings,
        "num_hidden_layers": len(encoder.layers),
        "type_vocab_size": 0 if embeddings.segment is None else embeddings.segment.num_embeddings,
    }
    if embeddings.position is not None:
        is_there["max_position_embeddings"] = embeddings.position.num_embeddings
    elif not config.has_positions:
        # Without the embedding this is no property of the parameters.
        is_there["max_position_embeddings"] = config.max_position_embeddings
    problems = []
    for field in dataclasses.fields(config):
        # What cannot be read off the modules was made from the config that the encoder has.
        there = is_there.get(field.name, getattr(encoder.config, field.name))
        says = getattr(config, field.name)
        if says != there and field.name not in CHANGEABLE:
            problems.append(f"{field.name} is {there!r}, the config says {says!r}")
    return problems
