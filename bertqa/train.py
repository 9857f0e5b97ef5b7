"""python -m bertqa.train: fine-tune a BERT, evaluate it, tune its no-answer threshold, and leave a run folder.

Without arguments it fine-tunes the bundled reader on the bundled sample; `--task classify` makes a text classifier.
`bertqa.fine_tune` does the same from Python, on files or records, and returns a Reader.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.console import say, silent
from bertqa.data.writing import as_file
from bertqa.distributed import world_of_torchrun
from bertqa.errors import UserError
from bertqa.flags import run_verb, verb
from bertqa.reader import Reader
from bertqa.settings import parts_of
from bertqa.training.command_line import PRESETS, parse, settings_from


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit status: 0, or 130 if a signal stopped the run (it can be resumed)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Inside this block even a mistyped flag is reported by one process only.
    with world_of_torchrun() as world:
        asked = parse(arguments)
        # Not before: importing torch takes seconds, and neither --help nor a mistyped flag needs it.
        from bertqa.training.run import run_training
        from bertqa.training.run_files import run_folder
        from bertqa.training.starting import job_of

        is_resumed = asked.resume is not None
        with run_folder(asked.resume or asked.settings.files.out, world, is_resumed) as run:
            job = job_of(
                asked.settings,
                run,
                world=world,
                say=say if world.first else silent,
                typed=asked.typed,
                command=["python", "-m", "bertqa.train", *arguments],
            )
            trained = run_training(job, resume=is_resumed)
    return 130 if trained.interrupted else 0


def fine_tune(
    train: object,
    dev: object = None,
    *,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    preset: str | None = None,
    **settings,
) -> Reader:
    """Fine-tune a reader for question answering, and return it with its best weights.

    Messages go to the logger "bertqa" (level INFO); TQDM_DISABLE=1 turns progress bars off. Ctrl-C saves the run, and then
    raises KeyboardInterrupt; `python -m bertqa.train --resume OUT` goes on.

    Args:
        train: a file of questions in any form that `python -m bertqa.train` reads, "squad1", "squad2", or records: dictionaries
            with question, context, answers and perhaps id and title, in a list, a pandas DataFrame or a datasets.Dataset.
        dev: the same to evaluate on; None = some articles of `train` are held out.
        weights: what to start from: a model folder, a Hugging Face folder or a Hub id; None = the bundled reader.
        out: the run folder to make; None = runs/ and the time. It is returned as `reader.training.run`.
        preset: settings of a published recipe, "google", "hf" or "fast".
        settings: any other setting of `python -m bertqa.train --help` by name, such as epochs=3, lr=3e-5.

    Raises:
        UserError: for data, weights and settings that cannot be used.
    """
    from bertqa.training.run import run_training
    from bertqa.training.run_files import run_folder
    from bertqa.training.starting import job_of

    if preset is not None and preset not in PRESETS:
        raise UserError(f"preset is {preset!r}, it must be one of {', '.join(PRESETS)}")
    if settings.get("task", "qa") != "qa":
        raise UserError(
            "fine_tune trains question answering; classes of texts: python -m bertqa.train --task classify"
        )
    with run_folder(out) as run:
        given = {"train": as_file(train, run / "train.jsonl"), "dev": dev, **settings}
        if dev is not None:
            given["dev"] = as_file(dev, run / "dev.jsonl")
        if weights is not None:
            given["weights"] = str(weights)
        layers = [PRESETS.get(preset, {}), given]
        chosen = settings_from(layers, parts_of("qa"), source="fine_tune")
        # Settings that were just given are named, so that remarks are made if others make them ineffective.
        trained = run_training(job_of(chosen, run, typed=frozenset(settings)))
    reader = Reader.load(run)  # its best weights, or the last
    reader.training = trained
    return reader


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
