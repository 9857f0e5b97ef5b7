"""Answers inside other people's engines: datasets, Ray Data, Spark, pandas, or a loop over batches.

bertqa builds no cluster of its own. These engines have a function run over batches of rows in many processes; an
`AnswerBatches` is such a function:

    datasets    data.map(AnswerBatches(model), batched=True, num_proc=2)
    Ray Data    data.map_batches(AnswerBatches, fn_constructor_args=[model], concurrency=2)
    Spark       data.mapInPandas(AnswerBatches(model).over, f"question string, context string, {SCHEMA}")

Spark is told every column that comes out, those that pass through among them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bertqa.errors import UserError
from bertqa.reader import Reader

SCHEMA = "answer string, score double, start int, end int, document int, error string"
"""The columns that are added, as Spark names their types."""

COLUMNS = ("answer", "score", "start", "end", "document", "error")


class AnswerBatches:
    """A function from a batch of rows to the batch with its answers: `AnswerBatches(model)(batch)`.

    A batch is a dictionary (or another mapping) of lists or arrays, or a pandas DataFrame; what comes out is of the same kind, with the columns
    answer, score, start, end, document and error behind its own. Of these only the question and the context are looked at;
    a context that is a list or an array of texts is documents.

    The model is loaded where the first batch comes, once in a process; the object itself is a name and some options, so
    that it is sent to a thousand workers at no cost.
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
            model: a model folder, a Hugging Face folder or a Hub id, as the workers see it.
            question, context: names of the columns.
            top_k: where over 1, the added columns hold lists, the best first; error stays one text.
            threads: of torch in a worker; engines run a worker on every core. None leaves torch's own choice.
            on_error: "keep": a row that cannot be read has an empty answer and says in `error` what is wrong. "stop":
                UserError.
            device, dtype, int8: as those of `Reader.load`.
            options: as those of `Reader.answer_many`.
        """
        # A relative path may mean nothing where a worker stands; a Hub id is no path.
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
        """The Reader of this process."""
        if self._reader is None:
            from bertqa.device import set_threads

            # Before anything is computed: engines run a worker on every core, and each would start as many threads.
            set_threads(self.threads or 0)
            self._reader = Reader.load(self.model, **self.load)
        return self._reader

    def __call__(self, batch):
        """The batch with its answers.

        Raises:
            UserError: for a batch without one of the columns, for a model that is not there, and with on_error "stop" for
                a row that cannot be read.
        """
        columns = self._columns(batch)
        pairs = []
        for question, context in zip(*columns, strict=True):
            pairs.append((_plain(question), _plain(context)))
        found = self.reader.answer_many(pairs, self.top_k, on_error=self.on_error, **self.options)
        added = self._added(list(found))
        # A DataFrame is no Mapping.
        if isinstance(batch, Mapping):
            return {**batch, **_like(columns[0], added)}
        return batch.assign(**added)

    def over(self, batches: Iterable) -> Iterator:
        """Batch after batch, as Spark's mapInPandas hands them over."""
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
        """The columns that are added: a value a row, or where top_k is over 1 a list, but for the error."""
        added: dict[str, list] = {name: [] for name in COLUMNS}
        for given in found:
            answers = given if self.top_k > 1 else [given]
            for name in COLUMNS:
                values = [getattr(answer, name) for answer in answers]
                added[name].append(values if self.top_k > 1 and name != "error" else values[0])
        return added

    def __getstate__(self) -> dict:
        """A worker loads its own Reader."""
        return {**self.__dict__, "_reader": None}


def _plain(value):
    """A cell as text or a list of texts; what is neither stays, and is an error of its row."""
    if hasattr(value, "tolist"):  # of numpy: a text, or an array of documents
        value = value.tolist()
    elif hasattr(value, "as_py"):  # of pyarrow
        value = value.as_py()
    return value


def _like(column, added: dict[str, list]) -> dict:
    """Lists where the batch has lists, arrays where it has arrays."""
    import numpy as np

    if not isinstance(column, np.ndarray):
        return added
    arrays = {}
    for name, values in added.items():
        if values and isinstance(values[0], (list, str)):
            arrays[name] = np.empty(len(values), object)  # texts and lists are of all lengths
            arrays[name][:] = values
        else:
            arrays[name] = np.array(values)
    return arrays
