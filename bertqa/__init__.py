"""bertqa: fine-tune and run BERT for extractive question answering, in plain PyTorch."""

__version__ = "0.1.0"

# Loaded on first use (PEP 562), so that score, doctor and report start without torch.
_PUBLIC = {
    "BertConfig": "bertqa.model.config",
    "BertEncoder": "bertqa.model.encoder",
    "BertForQuestionAnswering": "bertqa.model.heads",
    "BertForSequenceClassification": "bertqa.model.heads",
    "Reader": "bertqa.reader",
    "Answer": "bertqa.reader",
    "load_encoder": "bertqa.model.folder",
    "UserError": "bertqa.errors",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bertqa' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__ + ["__version__"])
