"""How a question answering model reads: the windows and the threshold of its qa.json, completed."""

from bertqa.model.folder import read_qa


def with_defaults(qa: dict, positions: int) -> dict:
    """What qa.json says of windows, completed: a folder that was converted and never trained here says nothing.

    The defaults are those of transformers' pipeline, or what a model of so many positions can take.
    """
    qa = dict(qa)
    length = qa.setdefault("max_length", min(384, positions))
    asked = qa.setdefault("max_question", min(64, length // 2))
    if "step" not in qa:
        qa.setdefault("overlap", min(128, (length - asked) // 2))
    return qa


def qa_of(model) -> dict:
    """qa.json of the folder that a model was loaded from, if it was."""
    where = getattr(model, "folder", None)
    return {} if where is None else read_qa(where)


def positions_of(model) -> int:
    """The longest sequence that a model takes, 512 where it does not say; a model of one's own may leave it to its encoder."""
    config = getattr(getattr(model, "encoder", model), "config", None)
    return 512 if config is None else config.max_position_embeddings
