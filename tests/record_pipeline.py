"""Record what transformers 4's question-answering pipeline answers to 300 real questions: pipeline_squad.json.

It needs transformers < 5, which the tests do not install, and an export of the bundled reader:

    python tools/convert_weights.py weights/minilm-squad2 EXPORT --to-hf
    pip install torch 'transformers<5'                    # in an environment of its own
    python tests/record_pipeline.py EXPORT ../shared/data

Only ids and offsets are written, no text: SQuAD is CC BY-SA. `test_reader.py` compares Reader with the file.
"""

import gzip
import hashlib
import json
import random
import sys
from pathlib import Path

MODES = {
    "words": {},
    "plain": {"align_to_words": False},
    "impossible": {"handle_impossible_answer": True},
    "impossible_plain": {"handle_impossible_answer": True, "align_to_words": False},
}
LONG = 1700  # characters of contexts that mostly need a second window of 384 tokens


def questions(path: Path) -> list[tuple[str, str, str]]:
    """(id, question, context) of a SQuAD file."""
    data = json.loads(gzip.decompress(path.read_bytes()))["data"]
    return [
        (qa["id"], qa["question"], paragraph["context"])
        for article in data
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def sample(folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    """150 questions of SQuAD 2.0 and 150 of 1.1, of which 50 about long paragraphs."""
    draw = random.Random(8)
    two, one = (questions(folder / name) for name in ("squad2-dev-2k.json.gz", "dev-v1.1.json.gz"))
    one = draw.sample([row for row in one if len(row[2]) >= LONG], 50) + draw.sample(
        [row for row in one if len(row[2]) < LONG], 100
    )
    return {"squad2-dev-2k.json.gz": draw.sample(two, 150), "dev-v1.1.json.gz": one}


def main(export: str, folder: str) -> None:
    import torch
    import transformers

    pipeline = transformers.pipeline(
        "question-answering", model=export, device=-1, dtype=torch.float32
    )
    weights = (
        Path(__file__).resolve().parents[1] / "weights" / "minilm-squad2" / "model.safetensors"
    )
    lines = []
    for name, rows in sample(Path(folder)).items():
        for id, question, context in rows:
            found = [
                pipeline(question=question, context=context, **mode) for mode in MODES.values()
            ]
            assert all(context[one["start"] : one["end"]] == one["answer"] for one in found)
            lines.append(
                json.dumps(
                    [
                        name,
                        id,
                        *(
                            [one["start"], one["end"], float(f"{one['score']:.6g}")]
                            for one in found
                        ),
                    ]
                )
            )
    how = (
        f"transformers {transformers.__version__}, QuestionAnsweringPipeline in float32, everything else its default, with "
        "the bundled reader; written by record_pipeline.py. A row is file, id, and [start, end, score] as answered with: "
        + "; ".join(f"{name} {mode or 'no options'}" for name, mode in MODES.items())
    )
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    Path(__file__).with_name("pipeline_squad.json").write_text(
        f'{{\n"how": {json.dumps(how)},\n"weights_sha256": "{sha256}",\n"questions": [\n'
        + ",\n".join(lines)
        + "\n]}\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
