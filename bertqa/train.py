"""python -m bertqa.train: fine-tune a BERT, evaluate it, tune its no-answer threshold, and leave a run folder.

Without arguments it fine-tunes the bundled reader on the bundled sample; `--task classify` makes a text classifier.
"""

import sys
from collections.abc import Sequence

from bertqa.console import say, silent, verb
from bertqa.distributed import world_of_torchrun
from bertqa.flags import run_verb
from bertqa.training.command_line import parse


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit status: 0, or 130 where a signal stopped the run (it can be resumed)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with world_of_torchrun() as world:
        asked = parse(arguments)
        # Not before: torch takes seconds, and neither --help nor a mistyped flag needs it.
        from bertqa.training.run import run_training
        from bertqa.training.run_config import check_free, check_new, run_folder
        from bertqa.training.starting import job_of

        with run_folder(asked.resume or asked.settings.files.out, world) as run:
            if world.first:
                # Before minutes are spent on reading data; run_training does it again.
                check = check_free if asked.resume else check_new
                check(run)
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


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
