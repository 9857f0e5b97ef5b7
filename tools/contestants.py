"""Who takes part in tools/bench.py: bertqa and what people use, for each task, on the same questions and weights.

A task is a function of a `Bench` that gives {contestant: function that loads what it needs and returns one round of
work in pieces}. The first contestant is ours. Loading is outside of the clock, and so is what the others have done for
them in advance: their batches are padded, and the Arrow files of run_qa are not written.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from workload import LENGTH, OVERLAP, ROOT, Bench

Pieces = list[Callable[[], object]]
"""One round of a contestant; the first piece also serves as its warm-up."""
Contestants = dict[str, Callable[[], Pieces]]


# ---- questions to features ----


def features(bench: Bench) -> Contestants:
    """Questions to windows with labels."""
    examples = bench.data.trainable()

    def theirs() -> Pieces:
        from reference_features import run_qa_features

        tokenizer = bench.their_tokenizer()
        records = []
        for example in examples:
            records.append(
                {
                    "question": example.question,
                    "context": example.context,
                    "answers": example.answer_texts,
                    "starts": example.answer_starts,
                }
            )
        parts = [records[i : i + 1000] for i in range(0, len(records), 1000)]
        return [partial(run_qa_features, tokenizer, part) for part in parts]

    found = {"bertqa": lambda: [lambda: bench.windows_of(examples)]}
    if bench.has("transformers"):
        found["run_qa, fast tokenizer"] = theirs
    return found


# ---- the model ----


def training(bench: Bench) -> Contestants:
    """Optimizer steps: forward, backward, clip, AdamW. Ours at the trainer's defaults."""
    random, sorted_ = bench.random_batches, bench.sorted_batches
    found = {"bertqa": lambda: our_steps(bench)}
    if bench.on_gpu:
        # 10,000 epochs are long enough for torch.compile.
        found["bertqa, a long run"] = lambda: our_steps(bench, epochs=10_000)
        found["bertqa --capture off"] = lambda: our_steps(bench, capture="off")
    if bench.has("transformers"):
        found["transformers, padded to 384"] = lambda: their_steps(bench, random, LENGTH)
        found["transformers, dynamic padding"] = lambda: their_steps(bench, random)
        found["transformers, length-grouped"] = lambda: their_steps(bench, sorted_)
        found["the same without attention dropout, as ours"] = lambda: their_steps(
            bench, sorted_, attention_dropout=0.0
        )
    return found


def distilling(bench: Bench) -> Contestants:
    """Optimizer steps with the kept logits of a teacher, beside plain ones."""
    return {
        "bertqa": lambda: our_steps(bench),
        "bertqa, with a teacher": lambda: our_steps(bench, teacher=True),
    }


def our_steps(bench: Bench, teacher: bool = False, **settings) -> Pieces:
    from bertqa.model.heads import span_loss
    from bertqa.settings import LoopSettings, OptimSettings
    from bertqa.training.job import Job
    from bertqa.training.progress import Progress
    from bertqa.training.step import Step

    teaching = made_up_teaching(bench) if teacher else None

    def loss(model, batch, layout):
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        labels = batch.start_labels, batch.end_labels
        hard = span_loss(logits, layout, *labels, weights=batch.weights)
        return teaching.span_loss(hard, logits, batch, layout) if teaching else hard

    job = Job(
        bench.model().train(),
        SimpleNamespace(store=bench.store(bench.windows), loss=loss, static_shapes=True),
        LoopSettings(batch_size=bench.batch_size, **settings),
        OptimSettings(),
        run=Path(),
        device=bench.device,
        dtype=bench.dtype,
        journal=None,
    )
    step = Step(job)
    return steps(bench, [partial(step, rows, 5e-5, Progress()) for rows in bench.random_batches])


def made_up_teaching(bench: Bench):
    """What a teacher that knows nothing says about every window: it costs a step what any other does."""
    import torch

    from bertqa.training.distillation import Teaching

    lengths = bench.windows.lengths
    first = lengths.cumsum() - lengths
    logits = -5 * np.random.default_rng(5).random((int(lengths.sum()), 2))
    return Teaching(
        names=[],
        fingerprint="",
        logits=torch.from_numpy(logits.astype(np.float16)).to(bench.device),
        first=torch.from_numpy(first.astype(np.int64)).to(bench.device),
        weight=0.5,
        temperature=2.0,
    )


def their_steps(
    bench: Bench,
    batches: list[np.ndarray],
    length: int | None = None,
    attention_dropout: float = 0.1,
) -> Pieces:
    import torch

    from bertqa.device import grad_scaler

    # 0.1 stands in the configuration of every published BERT; our exports say 0, with which ours was trained.
    model = bench.their_model(attention_probs_dropout_prob=attention_dropout).train()
    scaler = grad_scaler(bench.device, bench.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
    store = bench.store(bench.windows)

    def step(inputs):
        with bench.autocast:
            loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    pieces = []
    for rows in batches:
        inputs = bench.padded(store, rows, length)
        batch = store.batch(rows)
        inputs["start_positions"] = batch.start_labels
        inputs["end_positions"] = batch.end_labels
        pieces.append(partial(step, inputs))
    return steps(bench, pieces)


def steps(bench: Bench, pieces: Pieces) -> Pieces:
    """A round of optimizer steps. The host does not wait between them, as in a training loop."""
    if bench.on_gpu:
        # Graphs are captured and memory is found before the clock runs.
        for piece in pieces:
            piece()
    return [*pieces, bench.wait]


def inference(bench: Bench) -> Contestants:
    """Windows to start and end logits on the host."""
    plain = not bench.on_gpu and bench.dtype_name == "fp32"
    found = {"bertqa": lambda: our_answers(bench)}
    if plain:
        found["bertqa --int8"] = lambda: our_answers(bench, int8=True)
    if bench.has("transformers"):
        found["transformers, padded to 384"] = lambda: their_answers(bench, LENGTH)
        found["transformers, length-sorted"] = lambda: their_answers(bench)
    if plain and bench.has("transformers", "onnxruntime", "onnx", "onnxscript"):
        found["onnxruntime, length-sorted"] = lambda: onnx_answers(bench)
    return found


def our_answers(bench: Bench, int8: bool = False) -> Pieces:
    from bertqa.inference import forward_all
    from bertqa.model import prepack
    from bertqa.model.copies import computing_in_16_bits

    model = bench.model().eval()
    model = prepack.int8(model) if int8 else prepack.pack(model, bench.dtype)
    windows = bench.asked_windows

    def compute(batch, layout):
        return tuple(model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout))

    def answer():
        with computing_in_16_bits(model, bench.autocast) as autocast:
            for _ in forward_all(compute, windows, bench.device, autocast=autocast):
                pass

    return [answer]


def their_answers(bench: Bench, length: int | None = None) -> Pieces:
    import torch

    model = bench.their_model()

    @torch.inference_mode()
    def answer(batch):
        with bench.autocast:
            out = model(**batch)
        return out.start_logits.float().cpu().numpy(), out.end_logits.float().cpu().numpy()

    return [partial(answer, batch) for batch in padded_batches(bench, length)]


def padded_batches(bench: Bench, length: int | None = None) -> list[dict]:
    """All windows that the model answers, padded to `length`; sorted, and padded to the longest of a batch, without."""
    store = bench.store(bench.asked_windows)
    size = 128 if bench.on_gpu else 32
    order = np.arange(len(store))
    if length is None:
        order = np.argsort(-store.lengths, kind="stable")
    return [bench.padded(store, order[i : i + size], length) for i in range(0, len(order), size)]


def onnx_answers(bench: Bench) -> Pieces:
    import onnxruntime
    import torch

    model = bench.their_model()
    model.config.return_dict = False
    path = str(Path(bench.scratch) / "model.onnx")
    batches = padded_batches(bench)
    # Batch size and length are left open.
    free = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batches[0]}
    torch.onnx.export(
        model, (), path, kwargs=batches[0], dynamic_shapes=free, dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pieces = []
    for batch in batches:
        inputs = {name: tensor.numpy() for name, tensor in batch.items()}
        pieces.append(partial(session.run, None, inputs))
    return pieces


def answering(bench: Bench) -> Contestants:
    """Texts to answers, tokens and decoding included; where there is the pipeline, which went with transformers 5."""
    if bench.on_gpu or not bench.has("transformers"):
        return {}
    import transformers

    if int(transformers.__version__.split(".")[0]) > 4:
        return {}

    def ours() -> Pieces:
        from bertqa import Reader

        reader = Reader.load(bench.weights, device="cpu")
        asked = [(example.question, example.context) for example in bench.asked]
        return [lambda: list(reader.answer_many(asked))]

    def theirs(size: int) -> Pieces:
        ask = transformers.pipeline(
            "question-answering",
            model=bench.their_model(),
            tokenizer=bench.their_tokenizer(),
            batch_size=size,
        )
        records = [{"question": e.question, "context": e.context} for e in bench.asked]
        options = {"max_seq_len": LENGTH, "doc_stride": OVERLAP, "handle_impossible_answer": True}
        return [lambda: ask(records, **options)]

    return {
        "bertqa.Reader": ours,
        "transformers 4 pipeline": lambda: theirs(1),
        "the same, batch 32": lambda: theirs(32),
    }


def embedding(bench: Bench) -> Contestants:
    """Texts to mean-pooled vectors of length 1, tokens included."""

    def ours() -> Pieces:
        from bertqa.model import folder, prepack
        from bertqa.vectors import embed_texts

        encoder = folder.load_encoder(bench.weights, device=bench.device_name)
        encoder = prepack.pack(encoder, bench.dtype)
        options = {"normalize": True, "max_length": LENGTH, "dtype": bench.dtype}
        return [lambda: embed_texts(encoder, bench.tokenizer, bench.texts, **options)]

    def theirs() -> Pieces:
        import torch

        model = bench.their_model().base_model
        tokenizer = bench.their_tokenizer()
        options = {"padding": True, "truncation": True, "max_length": LENGTH}

        @torch.inference_mode()
        def embed(texts):
            batch = tokenizer(texts, return_tensors="pt", **options).to(bench.device)
            with bench.autocast:
                hidden = model(**batch).last_hidden_state.float()  # (B, L, H)
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)  # (B, H)
            return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()

        texts = bench.texts
        return [partial(embed, texts[i : i + 32]) for i in range(0, len(texts), 32)]

    found = {"bertqa": ours}
    if bench.has("transformers"):
        found["transformers, batches of 32"] = theirs
    return found


# ---- behind the model ----


def decoding(bench: Bench) -> Contestants:
    """Logits to n-best answers and null odds. The logits are made up: noise, and a likely answer in each window."""
    examples = bench.data.examples
    windows = bench.windows
    draw = np.random.default_rng(3)
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
            return list(n_best(decoder.finish(), windows, examples, no_answer=True))

        return [decode]

    def theirs() -> Pieces:
        from reference_postprocess import features_of, run_qa

        starts = np.split(start, stops[:-1])
        ends = np.split(end, stops[:-1])
        work = []
        for number, example in enumerate(examples):
            rows = np.flatnonzero(windows.question == number)
            logits = [(starts[row], ends[row]) for row in rows]
            work.append((example.context, features_of(windows, number), logits))
        return [lambda: [run_qa(*one)[0] for one in work]]

    return {
        "bertqa, exact": lambda: ours("exact"),
        "bertqa, hf": lambda: ours("hf"),
        "run_qa's Python loop": theirs,
    }


# ---- whole processes ----

OFFICIAL = """import json, sys; sys.path.insert(0, sys.argv[1]); from official_squad import evaluate_v2
print(evaluate_v2(*(json.load(open(name)) for name in sys.argv[2:])))"""

ONE_QUESTION = """import sys, torch; from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1] + "/tokenizer.json")
model = AutoModelForQuestionAnswering.from_pretrained(sys.argv[1]).float().eval()
with torch.inference_mode(): out = model(**tokenizer("Who came?", "Ada came at noon.", return_tensors="pt"))
print(out.start_logits.argmax(), out.end_logits.argmax())"""


def process(*arguments) -> Pieces:
    """A whole Python process, its output thrown away."""
    command = [sys.executable, *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [lambda: subprocess.run(command, check=True, env=environment, **quiet)]


def scoring(bench: Bench) -> Contestants:
    """Data and prediction files to the official v2.0 numbers with the threshold sweep."""
    paragraphs = []
    answers = {}
    for example in bench.data.examples:
        places = zip(example.answer_texts, example.answer_starts, strict=True)
        asked = {
            "id": example.id,
            "question": example.question,
            "is_impossible": not example.answer_texts,
            "answers": [{"text": text, "answer_start": at} for text, at in places],
        }
        paragraphs.append({"context": example.context, "qas": [asked]})
        answers[example.id] = (example.answer_texts or [example.context[:20]])[-1]
    noise = np.random.default_rng(4).normal(size=len(answers)).tolist()
    contents = {
        "data": {"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]},
        "answers": answers,
        "odds": dict(zip(answers, noise, strict=True)),
    }
    files = []
    for name, content in contents.items():
        files.append(Path(bench.scratch) / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    data, predictions, odds = files
    ours = ("-m", "bertqa.score", data, predictions, "-n", odds)
    return {
        "bertqa.score": lambda: process(*ours),
        "evaluate-v2.0, written anew": lambda: process("-c", OFFICIAL, ROOT / "tests", *files),
    }


def startup(bench: Bench) -> Contestants:
    """From the command line to the answer to one question."""
    asked = ("--question", "Who came?", "--context", "Ada came at noon.", "--device", "cpu")
    ask = ("-m", "bertqa.predict", "--model", bench.weights, *asked)
    found = {
        "bertqa.predict": lambda: process(*ask),
        "import torch": lambda: process("-c", "import torch"),
        "bertqa.score --help": lambda: process("-m", "bertqa.score", "--help"),
    }
    if bench.has("transformers"):
        found["transformers, one question"] = lambda: process("-c", ONE_QUESTION, bench.exported)
    return found


def run(bench: Bench) -> Contestants:
    """`python -m bertqa.train` from its start to its last line: an epoch, its evaluation, and all that it writes."""
    out = Path(bench.scratch) / "run"
    files = ("--train", bench.data_path, "--dev", bench.data_path, "--weights", bench.weights)
    how = ("--epochs", 1, "--batch-size", bench.batch_size, "--device", bench.device_name)
    flags = [*files, *how, "--precision", bench.dtype_name, "--out", out]
    if bench.quick:
        flags += ["--max-steps", 1, "--limit-train", 8, "--limit-dev", 4]
    [train] = process("-m", "bertqa.train", *flags)
    # A warm-up would take as long as the run. The folder of the round before is in the way.
    return {"bertqa.train": lambda: [partial(shutil.rmtree, out, ignore_errors=True), train]}
