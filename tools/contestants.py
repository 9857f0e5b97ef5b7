"""Who takes part in tools/bench.py: bertqa and what people use, for each task, on the same questions and weights.

A task is a function of a `Bench` that gives {contestant: function that loads what it needs and returns one round of
work in pieces}. The first contestant is ours. Loading is outside of the clock, and so is what the others have done for
them in advance: their batches are padded, and the Arrow files of run_qa are not written.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests"),
]  # runs from a clone; the old scripts' Python loops stand in tests/

import numpy as np  # noqa: E402

from bertqa.data.examples import Dataset, read_examples  # noqa: E402
from bertqa.data.text_windows import TextWindows, text_windows  # noqa: E402
from bertqa.data.tokenizer import WordPiece  # noqa: E402
from bertqa.data.windows import Windows, build_windows  # noqa: E402

LENGTH, OVERLAP = 384, 128
OTHERS = ("transformers", "onnxruntime", "onnx", "onnxscript")

Pieces = list[Callable[[], object]]
"""One round of a contestant; the first piece also serves as its warm-up."""
Contestants = dict[str, Callable[[], Pieces]]


def importable(module: str) -> bool:
    """Whether it is installed and works: a package that fits ill with its neighbours raises when it is imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


@dataclass
class Bench:
    """The questions, the model and the sizes of a run. Each loads when first asked for, so a process has what it needs."""

    data_path: str
    weights: str
    scratch: str
    quick: bool = False
    device_name: str = "cpu"
    dtype_name: str = "fp32"
    label: str = ""
    """Of the model, in the names of tasks."""
    others: tuple[str, ...] = ()
    """Which of `OTHERS` can be imported here; the main process tries, so that no contestant pays for another's import."""

    def has(self, *modules: str) -> bool:
        return set(modules) <= set(self.others)

    @property
    def on_gpu(self) -> bool:
        return self.device_name == "cuda"

    @property
    def batch_size(self) -> int:
        return 64 if self.on_gpu else 16

    @cached_property
    def data(self) -> Dataset:
        return read_examples(self.data_path)

    @cached_property
    def tokenizer(self) -> WordPiece:
        return WordPiece.load(self.weights)

    def windows_of(self, examples) -> Windows:
        return build_windows(examples, self.tokenizer, max_length=LENGTH, overlap=OVERLAP)

    @cached_property
    def windows(self) -> Windows:
        return self.windows_of(self.data.examples)

    @cached_property
    def sorted_batches(self) -> list[np.ndarray]:
        """A few of the 50 batches that length grouping makes of a mega-batch, largest first and evenly spread."""
        rows = np.random.default_rng(0).permutation(len(self.windows))[: 50 * self.batch_size]
        rows = rows[np.argsort(-self.windows.lengths[rows], kind="stable")]
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        wanted = 1 if self.quick else 10 if self.on_gpu else 3
        return [batches[int((i + 0.5) / wanted * len(batches))] for i in range(wanted)]

    @cached_property
    def random_batches(self) -> list[np.ndarray]:
        """The same windows, dealt at random."""
        rows = np.random.default_rng(1).permutation(np.concatenate(self.sorted_batches))
        return np.array_split(rows, len(self.sorted_batches))

    @cached_property
    def asked(self) -> list:
        """The questions that the model answers: a random part of all."""
        count = 8 if self.quick else 4096 if self.on_gpu else 160
        return [
            self.data.examples[i]
            for i in np.random.default_rng(2).permutation(len(self.data.examples))[:count]
        ]

    @cached_property
    def asked_windows(self) -> Windows:
        return self.windows_of(self.asked)

    @cached_property
    def texts(self) -> list[str]:
        """Texts to embed: questions, in the order of the file."""
        return [example.question for example in self.data.examples[: 8 if self.quick else 5000]]

    @cached_property
    def text_windows(self) -> TextWindows:
        return text_windows(self.texts, self.tokenizer, max_length=LENGTH)

    @cached_property
    def config(self) -> dict:
        return json.loads((Path(self.weights) / "config.json").read_text())["architecture"]

    @property
    def dtype(self):
        from bertqa.device import DTYPES

        return DTYPES[self.dtype_name]

    @property
    def precision(self) -> tuple:
        """(device, autocast, loss scaler)."""
        import torch

        from bertqa.device import autocast, grad_scaler

        device = torch.device(self.device_name)
        return device, autocast(device, self.dtype), grad_scaler(device, self.dtype)

    def wait(self) -> None:
        """Until the GPU has done what it was asked to."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def store(self, windows: Windows):
        from bertqa.data.batches import WindowStore

        return WindowStore(windows, self.device_name)

    def model(self):
        from bertqa.model import folder

        return folder.load(self.weights, device=self.device_name)

    @cached_property
    def exported(self) -> Path:
        """Our weights as a folder for transformers."""
        from bertqa.hf.export import export

        where = Path(self.scratch) / f"hf-{self.label}"
        if not where.exists():
            export(self.weights, where)
        return where

    def their_model(self, **config):
        from transformers import AutoModelForQuestionAnswering

        # Since version 5 it computes in the format of the file, and float16 is no format for a CPU.
        return (
            AutoModelForQuestionAnswering.from_pretrained(self.exported, **config)
            .float()
            .eval()
            .to(self.device_name)
        )

    def their_tokenizer(self):
        from transformers import PreTrainedTokenizerFast

        special = {
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
        }
        return PreTrainedTokenizerFast(
            tokenizer_file=f"{self.weights}/tokenizer.json", model_max_length=512, **special
        )

    def padded(self, store, rows: np.ndarray, length: int | None) -> dict:
        """The arguments of their model for a batch of windows, padded to `length` or to the longest of them."""
        import torch

        from bertqa.data.batches import padded

        tensors = padded(store.batch(rows))
        if length:
            tensors = [torch.nn.functional.pad(x, (0, length - x.shape[1])) for x in tensors]
        names = ("input_ids", "attention_mask", "token_type_ids")[
            : 3 if self.config["type_vocab_size"] else 2
        ]
        return dict(zip(names, tensors, strict=False))


# ---- questions to features ----


def features(bench: Bench, count: int | None = None) -> Contestants:
    """Questions to windows with labels; with `count` ours alone, on as many questions."""
    examples = bench.data.trainable()[:count]

    def theirs() -> Pieces:
        tokenizer = bench.their_tokenizer()
        records = [
            {
                "question": e.question,
                "context": e.context,
                "answers": e.answer_texts,
                "starts": e.answer_starts,
            }
            for e in examples
        ]
        return [
            lambda: [
                len(run_qa_features(tokenizer, records[i : i + 1000]))
                for i in range(0, len(records), 1000)
            ]
        ]

    ours = {"bertqa": lambda: [lambda: bench.windows_of(examples)]}
    return ours | (
        {"run_qa, fast tokenizer": theirs} if bench.has("transformers") and count is None else {}
    )


def run_qa_features(tokenizer, records: list[dict]) -> list[dict]:
    """What run_qa's prepare_train_features makes of a batch of records, padded to 384."""
    found = tokenizer(
        [r["question"].lstrip() for r in records],
        [r["context"] for r in records],
        truncation="only_second",
        max_length=LENGTH,
        stride=OVERLAP,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    features = []
    for i, offsets in enumerate(found["offset_mapping"]):
        record, ids = records[found["overflow_to_sample_mapping"][i]], found["input_ids"][i]
        start = end = ids.index(tokenizer.cls_token_id)
        if record["answers"]:
            begin, segments = record["starts"][0], found.sequence_ids(i)
            stop = begin + len(record["answers"][0])
            first, last = segments.index(1), len(segments) - 1 - segments[::-1].index(1)
            if offsets[first][0] <= begin and offsets[last][1] >= stop:
                while first < len(offsets) and offsets[first][0] <= begin:
                    first += 1
                while offsets[last][1] >= stop:
                    last -= 1
                start, end = first - 1, last + 1
        features.append(
            {
                "input_ids": ids,
                "attention_mask": found["attention_mask"][i],
                "start_positions": start,
                "token_type_ids": found["token_type_ids"][i],
                "end_positions": end,
            }
        )
    return features


# ---- the model ----


def training(bench: Bench) -> Contestants:
    """Optimizer steps: forward, backward, clip, AdamW."""

    def update(model, optimizer, scaler):
        import torch

        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        bench.wait()

    def ours() -> Pieces:
        from bertqa.model.heads import span_loss
        from bertqa.settings import LoopSettings, OptimSettings
        from bertqa.training.job import Job
        from bertqa.training.progress import Progress
        from bertqa.training.step import Step

        def loss(model, batch, layout):
            logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
            return span_loss(logits, layout, batch.start_labels, batch.end_labels)

        task = SimpleNamespace(store=bench.store(bench.windows), loss=loss)
        job = Job(
            bench.model().train(),
            task,
            LoopSettings(),
            OptimSettings(),
            run=Path(),
            device=bench.precision[0],
            dtype=bench.dtype,
            journal=None,
        )
        take_step = Step(job)

        def step(rows):
            take_step(rows, 5e-5, Progress())
            bench.wait()

        return [partial(step, rows) for rows in bench.random_batches]

    def theirs(
        batches: list[np.ndarray], length: int | None, attention_dropout: float = 0.1
    ) -> Pieces:
        import torch

        # 0.1 stands in the configuration of every published BERT; our exports say 0, with which ours was trained.
        model = bench.their_model(attention_probs_dropout_prob=attention_dropout).train()
        _, cast, scaler = bench.precision
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
        store = bench.store(bench.windows)

        def step(inputs, labels):
            with cast:
                loss = model(**inputs, start_positions=labels[0], end_positions=labels[1]).loss
            scaler.scale(loss).backward()
            update(model, optimizer, scaler)

        batches = [(bench.padded(store, rows, length), store.batch(rows)) for rows in batches]
        return [
            partial(step, inputs, (batch.start_labels, batch.end_labels))
            for inputs, batch in batches
        ]

    return {"bertqa": ours} | (
        {
            "transformers, padded to 384": lambda: theirs(bench.random_batches, LENGTH),
            "transformers, dynamic padding": lambda: theirs(bench.random_batches, None),
            "transformers, length-grouped": lambda: theirs(bench.sorted_batches, None),
            "the same without attention dropout, as ours": lambda: theirs(
                bench.sorted_batches, None, 0.0
            ),
        }
        if bench.has("transformers")
        else {}
    )


def inference(bench: Bench) -> Contestants:
    """Windows to start and end logits on the host."""

    def ours(int8: bool = False) -> Pieces:
        from bertqa.inference import forward_all
        from bertqa.model import prepack

        (device, cast, _), model, windows = bench.precision, bench.model(), bench.asked_windows
        model = prepack.int8(model) if int8 else prepack.pack(model, bench.dtype)

        def compute(batch, layout):
            return tuple(
                model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
            )

        return [
            lambda: [len(rows) for rows, _ in forward_all(compute, windows, device, autocast=cast)]
        ]

    def batches(length: int | None) -> list[dict]:
        store, size = bench.store(bench.asked_windows), 2 * bench.batch_size
        order = np.arange(len(store)) if length else np.argsort(-store.lengths, kind="stable")
        return [
            bench.padded(store, order[i : i + size], length) for i in range(0, len(order), size)
        ]

    def theirs(length: int | None) -> Pieces:
        import torch

        (_, cast, _), model = bench.precision, bench.their_model()

        @torch.inference_mode()
        def answer(batch):
            with cast:
                out = model(**batch)
            return out.start_logits.float().cpu().numpy(), out.end_logits.float().cpu().numpy()

        return [partial(answer, batch) for batch in batches(length)]

    def onnx() -> Pieces:
        import onnxruntime

        session = onnxruntime.InferenceSession(
            export_onnx(bench), providers=["CPUExecutionProvider"]
        )
        return [
            partial(session.run, None, {name: x.numpy() for name, x in batch.items()})
            for batch in batches(None)
        ]

    found = {"bertqa": ours} | (
        {} if bench.on_gpu or bench.dtype_name != "fp32" else {"bertqa --int8": lambda: ours(True)}
    )
    if bench.has("transformers"):
        found |= {
            "transformers, padded to 384": lambda: theirs(LENGTH),
            "transformers, length-sorted": lambda: theirs(None),
        }
    if (
        bench.has("transformers", "onnxruntime", "onnx", "onnxscript")
        and not bench.on_gpu
        and bench.dtype_name == "fp32"
    ):
        found["onnxruntime, length-sorted"] = onnx
    return found


def embedding(bench: Bench) -> Contestants:
    """Texts to mean-pooled vectors of length 1, tokens included."""

    def ours() -> Pieces:
        from bertqa.model import folder, prepack
        from bertqa.vectors import embed_texts

        encoder = prepack.pack(
            folder.load_encoder(bench.weights, device=bench.device_name), bench.dtype
        )
        options = {"normalize": True, "max_length": LENGTH, "dtype": bench.dtype}
        return [lambda: embed_texts(encoder, bench.tokenizer, bench.texts, **options)]

    def theirs() -> Pieces:
        import torch

        (device, cast, _), model, tokenizer = (
            bench.precision,
            bench.their_model().base_model,
            bench.their_tokenizer(),
        )

        @torch.inference_mode()
        def embed(texts):
            found = tokenizer(
                texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            ).to(device)
            with cast:
                hidden = model(**found).last_hidden_state.float()
            mask = found["attention_mask"][..., None]
            return (
                torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
                .cpu()
                .numpy()
            )

        return [partial(embed, bench.texts[i : i + 32]) for i in range(0, len(bench.texts), 32)]

    return {"bertqa": ours} | (
        {"transformers, batches of 32": theirs} if bench.has("transformers") else {}
    )


def export_onnx(bench: Bench) -> str:
    """Their model as an ONNX file with free batch size and length."""
    import torch

    path, model = str(Path(bench.scratch) / "model.onnx"), bench.their_model()
    model.config.return_dict = False
    sample = bench.padded(bench.store(bench.asked_windows), np.arange(2), None)
    free = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in sample}
    torch.onnx.export(
        model, (), path, kwargs=sample, dynamic_shapes=free, dynamo=True, verbose=False
    )
    return path


def answering(bench: Bench) -> Contestants:
    """Texts to answers, tokens and decoding included; where there is the pipeline, which went with transformers 5."""
    if (
        not bench.has("transformers")
        or int(__import__("transformers").__version__.split(".")[0]) > 4
    ):
        return {}

    def ours() -> Pieces:
        from bertqa import Reader

        reader = Reader.load(bench.weights, device="cpu")
        return [lambda: list(reader.answer_many([(e.question, e.context) for e in bench.asked]))]

    def theirs(size: int) -> Pieces:
        from transformers import pipeline

        ask = pipeline(
            "question-answering",
            model=bench.their_model(),
            tokenizer=bench.their_tokenizer(),
            batch_size=size,
        )
        records = [{"question": e.question, "context": e.context} for e in bench.asked]
        return [
            lambda: ask(
                records, handle_impossible_answer=True, max_seq_len=LENGTH, doc_stride=OVERLAP
            )
        ]

    return {
        "bertqa.Reader": ours,
        "transformers 4 pipeline": lambda: theirs(1),
        "the same, batch 32": lambda: theirs(32),
    }


# ---- behind the model ----


def decoding(bench: Bench, count: int | None = None) -> Contestants:
    """Logits to n-best answers and null odds; with `count` ours alone, on as many questions.

    The logits are made up: noise, and a likely answer in each window.
    """
    examples, draw = bench.data.examples[:count], np.random.default_rng(3)
    windows = bench.windows if count is None else bench.windows_of(examples)
    stops = np.cumsum(windows.lengths)
    start, end = draw.normal(-6, 2, (2, stops[-1])).astype(np.float32)
    likely = stops - 2 - (draw.random(len(windows)) * windows.count).astype(int)
    start[likely] += 10
    end[np.minimum(likely + 2, stops - 2)] += 10

    def ours(mode: str) -> Pieces:
        from bertqa.qa.answers import n_best
        from bertqa.qa.spans import SpanDecoder, SpanSettings

        def decode():
            decoder = SpanDecoder(windows, SpanSettings(mode=mode))
            decoder.add(np.arange(len(windows)), start, end)
            return sum(
                len(answers)
                for answers in n_best(decoder.finish(), windows, examples, no_answer=True)
            )

        return [decode]

    def theirs() -> Pieces:
        from reference_postprocess import features_of, run_qa

        logits = list(zip(np.split(start, stops[:-1]), np.split(end, stops[:-1]), strict=True))
        work = [
            (
                e.context,
                features_of(windows, q),
                [logits[row] for row in np.flatnonzero(windows.question == q)],
            )
            for q, e in enumerate(examples)
        ]
        return [lambda: [run_qa(*one)[0] for one in work]]

    found = {"bertqa, exact": lambda: ours("exact")}
    return found | (
        {"bertqa, hf": lambda: ours("hf"), "run_qa's Python loop": theirs} if count is None else {}
    )


OFFICIAL = """import json, sys; sys.path.insert(0, sys.argv[1]); from official_squad import evaluate_v2
print(evaluate_v2(*(json.load(open(name)) for name in sys.argv[2:])))"""

ONE_QUESTION = """import sys, torch; from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1] + "/tokenizer.json")
model = AutoModelForQuestionAnswering.from_pretrained(sys.argv[1]).float().eval()
with torch.inference_mode(): out = model(**tokenizer("Who came?", "Ada came at noon.", return_tensors="pt"))
print(out.start_logits.argmax(), out.end_logits.argmax())"""


def process(*arguments) -> Pieces:
    """A whole Python process, its output thrown away."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return [
        lambda: subprocess.run(
            [sys.executable, *map(str, arguments)],
            check=True,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    ]


def scoring(bench: Bench) -> Contestants:
    """Data and prediction files to the official v2.0 numbers with the threshold sweep: whole processes."""
    paragraphs = [
        {
            "context": e.context,
            "qas": [
                {
                    "id": e.id,
                    "question": e.question,
                    "is_impossible": not e.answer_texts,
                    "answers": [
                        {"text": text, "answer_start": at}
                        for text, at in zip(e.answer_texts, e.answer_starts, strict=True)
                    ],
                }
            ],
        }
        for e in bench.data.examples
    ]
    odds = np.random.default_rng(4).normal(size=len(paragraphs)).tolist()
    contents = {
        "data": {"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]},
        "answers": {e.id: (e.answer_texts or (e.context[:20],))[-1] for e in bench.data.examples},
        "odds": dict(zip((e.id for e in bench.data.examples), odds, strict=True)),
    }
    data, answers, odds = (Path(bench.scratch) / f"{name}.json" for name in contents)
    for path, content in zip((data, answers, odds), contents.values(), strict=True):
        path.write_text(json.dumps(content))
    return {
        "bertqa.score": lambda: process("-m", "bertqa.score", data, answers, "-n", odds),
        "evaluate-v2.0, written anew": lambda: process(
            "-c", OFFICIAL, ROOT / "tests", data, answers, odds
        ),
    }


def startup(bench: Bench) -> Contestants:
    """From the command line to the answer to one question: whole processes."""
    ask = (
        "--model",
        bench.weights,
        "--question",
        "Who came?",
        "--context",
        "Ada came at noon.",
        "--device",
        "cpu",
    )
    found = {
        "bertqa.predict": lambda: process("-m", "bertqa.predict", *ask),
        "import torch": lambda: process("-c", "import torch"),
        "bertqa.score --help": lambda: process("-m", "bertqa.score", "--help"),
    }
    if bench.has("transformers"):
        found["transformers, one question"] = lambda: process("-c", ONE_QUESTION, bench.exported)
    return found
