"""Answer questions inside engines for large data: datasets, Ray Data, Spark.

These run a function over batches of rows in many processes. An `AnswerBatches` is such a function:

    datasets    data.map(AnswerBatches(model), batched=True, num_proc=2)
    Ray Data    data.map_batches(AnswerBatches, fn_constructor_args=[model], concurrency=2)
    Spark       data.mapInPandas(AnswerBatches(model).over, f"question string, context string, {SCHEMA}")

The schema for Spark lists every column that comes out, also those that pass through.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bertqa.errors import UserError
from bertqa.reader import Reader

SCHEMA = "answer string, score double, start int, end int, document int, error string"
"""The added columns, for Spark."""

COLUMNS = ("answer", "score", "start", "end", "document", "error")


class AnswerBatches:
    """A function from a batch of rows to the batch with its answers: `AnswerBatches(model)(batch)`.

    A batch is a mapping from columns to lists or arrays, or a pandas DataFrame. What is returned is of the same kind and has
    the added columns answer, score, start, end, document and error. A context is a text, or a list or array of documents.

    Each process loads the model at its first batch. The object holds a name and options, so that workers are sent little.
    """

    def __init__(
        self,
        model: str | Path,
        question: str = "question",
        context: str = "context",
        top_k: int = 1,
        *,
        threads: int | None = 1,
        on_error: str = "keep",
        device=None,
        dtype=None,
        int8: bool = False,
        **options,
    ):
        """
        Args:
            model: a model folder, a Hugging Face folder or a Hub id, which all workers can read.
            question, context: names of the columns.
            top_k: over 1, the added columns hold lists, the best answer first; `error` is one text.
            threads: of torch in a worker, 1 since engines run a worker on every core; None: torch's own choice.
            on_error: what a row that cannot be read gives: "keep" an empty answer and the `error`, "stop" a UserError.
            device, dtype, int8: as for `Reader.load`.
            options: as for `Reader.answer_many`.
        """
        # A worker may have another working directory; a Hub id is no path.
        name = str(model)
        self.model = os.path.abspath(name) if os.path.exists(name) else name
        self.question = question
        self.context = context
        self.top_k = top_k
        self.threads = threads
        self.on_error = on_error
        self.load = {"device": device, "dtype": dtype, "int8": int8}
        self.options = options
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        """The Reader of this process, loaded at the first use."""
        if self._reader is None:
            from bertqa.device import set_threads

            # Before the first product: later, torch has already started a thread for every core.
            set_threads(self.threads or 0)
            self._reader = Reader.load(self.model, **self.load)
        return self._reader

    def __call__(self, batch):
        """Return the batch with its answers.

        Raises:
            UserError: where the batch lacks a column, the model does not exist, or with `on_error` "stop" a row cannot be
                read.
        """
        columns = self._columns(batch)
        pairs = []
        for question, context in zip(*columns, strict=True):
            pairs.append((_plain(question), _plain(context)))
        found = self.reader.answer_many(pairs, self.top_k, on_error=self.on_error, **self.options)
        added = self._added(list(found))
        if isinstance(batch, Mapping):
            return {**batch, **_like(columns[0], added)}
        return batch.assign(**added)  # a DataFrame

    def over(self, batches: Iterable) -> Iterator:
        """Yield the answers to an iterator of batches, for Spark's mapInPandas."""
        for batch in batches:
            yield self(batch)

    def _columns(self, batch) -> tuple[Sequence, Sequence]:
        names = list(batch)
        missing = [name for name in (self.question, self.context) if name not in names]
        if missing:
            raise UserError(
                f"there is no column {missing[0]!r}; the columns are {', '.join(map(repr, names))}; say which are meant: "
                "AnswerBatches(model, question=..., context=...)"
            )
        return batch[self.question], batch[self.context]

    def _added(self, found: list) -> dict[str, list]:
        """Return the added columns. With top_k over 1 a value is a list, except in `error`."""
        added: dict[str, list] = {name: [] for name in COLUMNS}
        for given in found:
            answers = given if self.top_k > 1 else [given]
            for name in COLUMNS:
                values = [getattr(answer, name) for answer in answers]
                is_list = self.top_k > 1 and name != "error"
                added[name].append(values if is_list else values[0])
        return added

    def __getstate__(self) -> dict:
        """Leave out the Reader: each worker loads its own."""
        return {**self.__dict__, "_reader": None}


def _plain(value):
    """Convert a cell of numpy or pyarrow to Python's types."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    elif hasattr(value, "as_py"):
        value = value.as_py()
    return value


def _like(column, added: dict[str, list]) -> dict:
    """Return the added columns as arrays where the batch's `column` is one, else as lists."""
    import numpy as np

    if not isinstance(column, np.ndarray):
        return added
    arrays = {}
    for name, values in added.items():
        if values and isinstance(values[0], (list, str)):
            # np.array would make texts of fixed width, or two dimensions.
            arrays[name] = np.empty(len(values), object)
            arrays[name][:] = values
        else:
            arrays[name] = np.array(values)
    return arrays
