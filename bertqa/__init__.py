"""bertqa: fine-tune and run BERT for extractive question answering, in plain PyTorch.

The public names, which README's "Hack the encoder" shows in use. Everything else may move.

models        BertEncoder (returns an EncoderOutput), BertForQuestionAnswering, BertForSequenceClassification; BertConfig: their
              shape; Layout: where each sequence begins in a packed batch; SpanLogits and span_loss, (N,) -> ()
on disk       load, load_encoder: the model in a model folder, or its encoder; load_into: the same into your own module; save
surgery       keep_layers, resize_vocabulary, resize_positions: change the shape of a trained encoder
data          read_examples -> [Example]; WordPiece: the tokenizer; build_windows; WindowStore: windows -> packed Batch
answers       Reader: answers questions with a model folder, or as Reader(model, tokenizer); returns each Answer; evaluates,
              calibrates and saves itself; AnswerBatches: a Reader for datasets, Ray Data and Spark; find_spans: the n best spans of each
              question; SpanSettings: how they are searched
vectors       embed_texts; pooled: EncoderOutput -> one vector for each sequence
training      fine_tune: files or records -> a Reader;
              run_training(Job(...)), with your own Task or QuestionAnswering; LoopSettings, OptimSettings
speed         calibrate_int8: measures a model's activation ranges; SpeedHint: the warning that names a faster setting
errors        UserError: a mistake of the caller's, in one line
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# For type checkers and editors, which do not follow the lazy imports below.
if TYPE_CHECKING:
    from bertqa.answer_batches import AnswerBatches as AnswerBatches
    from bertqa.calibrate import calibrate_int8 as calibrate_int8
    from bertqa.data.batches import Batch as Batch, WindowStore as WindowStore
    from bertqa.data.examples import Example as Example, read_examples as read_examples
    from bertqa.data.tokenizer import WordPiece as WordPiece
    from bertqa.data.windows import build_windows as build_windows
    from bertqa.errors import SpeedHint as SpeedHint, UserError as UserError
    from bertqa.inference import find_spans as find_spans
    from bertqa.loading import load as load, load_encoder as load_encoder
    from bertqa.model.attention import Layout as Layout
    from bertqa.model.config import BertConfig as BertConfig
    from bertqa.model.encoder import BertEncoder as BertEncoder, EncoderOutput as EncoderOutput
    from bertqa.model.folder import load_into as load_into, save as save
    from bertqa.model.heads import (
        BertForQuestionAnswering as BertForQuestionAnswering,
        BertForSequenceClassification as BertForSequenceClassification,
        SpanLogits as SpanLogits,
        span_loss as span_loss,
    )
    from bertqa.model.surgery import (
        keep_layers as keep_layers,
        resize_positions as resize_positions,
        resize_vocabulary as resize_vocabulary,
    )
    from bertqa.qa.documents import Answer as Answer
    from bertqa.qa.search import SpanSettings as SpanSettings
    from bertqa.reader import Reader as Reader
    from bertqa.settings import LoopSettings as LoopSettings, OptimSettings as OptimSettings
    from bertqa.train import fine_tune as fine_tune
    from bertqa.training.job import Job as Job, Task as Task
    from bertqa.training.question_answering import QuestionAnswering as QuestionAnswering
    from bertqa.training.run import run_training as run_training
    from bertqa.vectors import embed_texts as embed_texts, pooled as pooled

# Imported on first use (PEP 562), so that score, doctor and report start without torch.
_PUBLIC = {
    "Answer": "bertqa.qa.documents",
    "AnswerBatches": "bertqa.answer_batches",
    "Batch": "bertqa.data.batches",
    "BertConfig": "bertqa.model.config",
    "BertEncoder": "bertqa.model.encoder",
    "BertForQuestionAnswering": "bertqa.model.heads",
    "BertForSequenceClassification": "bertqa.model.heads",
    "EncoderOutput": "bertqa.model.encoder",
    "Example": "bertqa.data.examples",
    "Job": "bertqa.training.job",
    "Layout": "bertqa.model.attention",
    "LoopSettings": "bertqa.settings",
    "OptimSettings": "bertqa.settings",
    "QuestionAnswering": "bertqa.training.question_answering",
    "Reader": "bertqa.reader",
    "SpanLogits": "bertqa.model.heads",
    "SpanSettings": "bertqa.qa.search",
    "SpeedHint": "bertqa.errors",
    "Task": "bertqa.training.job",
    "UserError": "bertqa.errors",
    "WindowStore": "bertqa.data.batches",
    "WordPiece": "bertqa.data.tokenizer",
    "build_windows": "bertqa.data.windows",
    "calibrate_int8": "bertqa.calibrate",
    "embed_texts": "bertqa.vectors",
    "fine_tune": "bertqa.train",
    "find_spans": "bertqa.inference",
    "keep_layers": "bertqa.model.surgery",
    "load": "bertqa.loading",
    "load_encoder": "bertqa.loading",
    "load_into": "bertqa.model.folder",
    "pooled": "bertqa.vectors",
    "read_examples": "bertqa.data.examples",
    "resize_positions": "bertqa.model.surgery",
    "resize_vocabulary": "bertqa.model.surgery",
    "run_training": "bertqa.training.run",
    "save": "bertqa.model.folder",
    "span_loss": "bertqa.model.heads",
}
__all__ = list(_PUBLIC)


if not TYPE_CHECKING:  # a type checker would take any attribute for defined

    def __getattr__(name: str):
        if name not in _PUBLIC:
            raise AttributeError(f"module 'bertqa' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__ + ["__version__"])
