"""python -m bertqa.train: fine-tune a BERT, evaluate it, tune its no-answer threshold, and leave a run folder.

Without arguments it fine-tunes the bundled reader on the bundled sample; `--task classify` makes a text classifier.
`bertqa.fine_tune` is a training from Python, of files or of records, that gives back a Reader.
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
    """Train. Returns the exit status: 0, or 130 where a signal stopped the run (it can be resumed)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Inside of the world even a mistyped flag is told once, and not by every process.
    with world_of_torchrun() as world:
        asked = parse(arguments)
        # Not before: torch takes seconds, and neither --help nor a mistyped flag needs it.
        from bertqa.training.run import run_training
        from bertqa.training.run_files import check_free, check_new, run_folder
        from bertqa.training.starting import job_of

        with run_folder(asked.resume or asked.settings.files.out, world) as run:
            # Before minutes are spent on reading data; run_training does it again.
            if world.first and asked.resume:
                check_free(run)
            elif world.first:
                check_new(run)
            job = job_of(
                asked.settings,
                run,
                world=world,
                say=say if world.first else silent,
                typed=asked.typed,
                command=["python", "-m", "bertqa.train", *arguments],
            )
            trained = run_training(job, resume=asked.resume is not None)
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

    What a training says goes to logging's logger "bertqa" (INFO); TQDM_DISABLE=1 turns its bars off. Ctrl-C saves, and
    then raises KeyboardInterrupt: `python -m bertqa.train --resume OUT` goes on.

    Args:
        train: a file of questions of any form that `python -m bertqa.train` reads, "squad1", "squad2", or records: dictionaries
            with question, context, answers and perhaps id and title, in a list, a pandas DataFrame or a datasets.Dataset.
        dev: the same to evaluate on; without it some articles of `train` are held out.
        weights: what to start from, a model folder, a Hugging Face folder or a Hub id; None = the bundled reader.
        out: the run folder to make; None = runs/ and the time. `reader.training.run` says where it is.
        preset: settings of a published recipe, "google", "hf" or "fast".
        settings: any other setting of `python -m bertqa.train --help` by name, such as epochs=3, lr=3e-5.

    Raises:
        UserError: for data, weights and settings that cannot be used.
    """
    from bertqa.training.run import run_training
    from bertqa.training.run_files import check_new, run_folder
    from bertqa.training.starting import job_of

    if preset is not None and preset not in PRESETS:
        raise UserError(f"preset is {preset!r}, it must be one of {', '.join(PRESETS)}")
    if settings.get("task", "qa") != "qa":
        raise UserError(
            "fine_tune trains question answering; classes of texts: python -m bertqa.train --task classify"
        )
    with run_folder(out) as run:
        check_new(run)
        given = {"train": as_file(train, run / "train.jsonl"), "dev": dev, **settings}
        if dev is not None:
            given["dev"] = as_file(dev, run / "dev.jsonl")
        if weights is not None:
            given["weights"] = str(weights)
        layers = [PRESETS.get(preset, {}), given]
        chosen = settings_from(layers, parts_of("qa"), source="fine_tune")
        # Of a setting that somebody has just given it is said where another one makes it mean nothing.
        trained = run_training(job_of(chosen, run, typed=frozenset(settings)))
    reader = Reader.load(run)  # its best weights, or the last
    reader.training = trained
    return reader


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
