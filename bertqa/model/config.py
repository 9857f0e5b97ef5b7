"""The configuration of a BERT encoder; fields are named as in Hugging Face's config.json."""

import dataclasses
from dataclasses import dataclass

from bertqa.errors import UserError

QA = "question-answering"
CLASSES = "sequence-classification"
"""Names of the heads in config.json; a bare encoder has null there."""

CHOICES = {
    "hidden_act": ("gelu", "gelu_tanh", "relu"),
    "position_embedding_type": ("absolute", "none"),
    "model_type": ("bert", "distilbert"),
}
"""Fields that take one of a few words."""

LARGEST = {
    "vocab_size": 10_000_000,
    "hidden_size": 100_000,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 100_000,
    "intermediate_size": 1_000_000,
    "max_position_embeddings": 10_000_000,
    "type_vocab_size": 100_000,
}
"""Upper bounds of the sizes: a damaged file that states more must not make us allocate it."""


FRACTIONS = (
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
)
"""Fields that take a number from 0 to 1."""


@dataclass(frozen=True)
class BertConfig:
    """Sizes and functions of an encoder. The defaults are those of bert-base-uncased."""

    model_type: str = "bert"
    """"bert" or "distilbert". The layers are the same; the heads and the names in Hugging Face's files differ."""
    vocab_size: int = 30522
    """V, rows of the word embedding."""
    hidden_size: int = 768
    """H, width of a token's vector."""
    num_hidden_layers: int = 12
    """Transformer layers, each with attention and a feed-forward network."""
    num_attention_heads: int = 12
    """A; the head size is D = H / A."""
    intermediate_size: int = 3072
    """F, inner width of the feed-forward network."""
    max_position_embeddings: int = 512
    """Longest sequence, in tokens. Without position embeddings the encoder takes longer ones too; the command-line
    programs still keep to this length."""
    type_vocab_size: int = 2
    """Segment embeddings; 0 where the architecture has none (DistilBERT)."""
    hidden_act: str = "gelu"
    """"gelu" (exact, with erf), "gelu_tanh" (Google's approximation) or "relu"."""
    layer_norm_eps: float = 1e-12
    """Added to the variance inside LayerNorm."""
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings and after each sub-layer."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on attention probabilities. Flash attention has none, so training with it is slower (see attention.py)."""
    initializer_range: float = 0.02
    """Standard deviation of newly initialised weights."""
    pooler: bool = False
    """Whether the encoder ends in a pooler, tanh(dense([CLS])); question answering does not use one."""
    position_embedding_type: str = "absolute"
    """"absolute", or "none" for attention functions that encode positions themselves (ALiBi, rotary)."""

    def __post_init__(self):
        problems = [*self._wrong_sizes(), *self._wrong_numbers()]
        # Only once both are known to be positive integers: 768 % 0 and 768 % "12" would raise here.
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
            # type(), because True and False are instances of int.
            if type(size) is not int:
                problems.append(f"{name} is {size!r}, it must be a whole number")
            elif size < 0 and name == "type_vocab_size":
                problems.append(f"{name} is {size}, it must be 0 or more")
            elif size < 1 and name != "type_vocab_size":
                problems.append(f"{name} is {size}, it must be positive")
            elif size > most:
                problems.append(f"{name} is {size}, and no model's is over {most:,}")
        return problems

    def _wrong_numbers(self) -> list[str]:
        problems = []
        for name in FRACTIONS:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            # NaN compares false, so it is refused too.
            if not is_number or not 0 <= value <= 1:
                problems.append(f"{name} is {value!r}, it must be a number from 0 to 1")
        return problems

    @property
    def has_positions(self) -> bool:
        """Whether the encoder has position embeddings."""
        return self.position_embedding_type == "absolute"

    @property
    def longest(self) -> int | None:
        """Tokens in the longest sequence that the encoder takes; None for no limit (no position embeddings)."""
        return self.max_position_embeddings if self.has_positions else None

    def replace(self, **changes) -> "BertConfig":
        """Return a copy with these fields changed."""
        return dataclasses.replace(self, **changes)


CHANGEABLE = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
"""Fields that change neither the shapes of parameters nor the result in eval mode."""


def misfits(config: BertConfig, encoder) -> list[str]:
    """Return how a config contradicts an encoder, one phrase per field; [] where it describes the encoder."""
    embeddings = encoder.embeddings
    actual = dataclasses.asdict(encoder.config)
    # Surgery changes modules before the config, so what the modules show counts for more.
    actual["vocab_size"] = embeddings.word.num_embeddings
    actual["num_hidden_layers"] = len(encoder.layers)
    actual["type_vocab_size"] = 0
    if embeddings.segment is not None:
        actual["type_vocab_size"] = embeddings.segment.num_embeddings
    if embeddings.position is not None:
        actual["max_position_embeddings"] = embeddings.position.num_embeddings
    elif not config.has_positions:
        # Without position embeddings no parameter depends on this number.
        actual["max_position_embeddings"] = config.max_position_embeddings

    problems = []
    for name, value in actual.items():
        stated = getattr(config, name)
        if stated != value and name not in CHANGEABLE:
            problems.append(f"{name} is {value!r}, the config says {stated!r}")
    return problems
