"""Command lines: a parser that knows the flags of run_qa.py and run_squad.py, flags that several verbs share, and
run_verb, which turns a UserError into one line and an exit status.
"""

import argparse
import atexit
import difflib
import functools
import gc
import sys
import warnings
from collections.abc import Callable, Sequence

from bertqa.console import BF16_ANSWERS, INT8_ANSWERS, prepare_streams, said_on_stderr
from bertqa.errors import SpeedHint, UserError

Main = Callable[[Sequence[str] | None], int]

OTHER_NAMES = {
    "adam-epsilon": "--eps",
    "bf16": "--precision bf16",
    "cache-dir": "not needed: HF_HOME and BERTQA_CACHE name the caches",
    "config-name": "not needed: the shape stands beside the weights",
    "dataset-name": "--train squad1 or --train squad2 | --data squad1 or --data squad2",
    "do-eval": "not needed: train evaluates with --dev",
    "do-lower-case": "not needed: the vocabulary's own files say it",
    "do-predict": "not needed: that is the verb predict",
    "do-train": "not needed: that is the verb train",
    "eval-steps": "--eval-every",
    "eval-strategy": "--eval-every",
    "evaluation-strategy": "--eval-every",
    "fp16": "--precision fp16",
    "gradient-accumulation-steps": "not needed: --batch-size is an optimizer step's, --micro-tokens what fits at once",
    "init-checkpoint": "--weights",
    "learning-rate": "--lr",
    "load-best-model-at-end": "not needed: the run's folder best has it",
    "logging-steps": "not needed: metrics.jsonl has every step",
    "lr-scheduler-type": "--schedule",
    "max-eval-samples": "--limit-dev",
    "max-grad-norm": "--clip",
    "max-predict-samples": "--limit",
    "max-query-length": "--max-question",
    "max-seq-length": "--max-length",
    "max-train-samples": "--limit-train",
    "model-name-or-path": "--weights",
    "n-best-size": "--n-best | not needed: that is --n-best of predict",
    "null-score-diff-threshold": "--threshold | not needed: train tunes the threshold, --threshold of predict sets it",
    "num-train-epochs": "--epochs",
    "output-dir": "--out",
    "overwrite-output-dir": "not needed: --resume goes on with a run, --out names another folder",
    "pad-to-max-length": "not needed: nothing is padded",
    "per-device-eval-batch-size": "not needed: --micro-tokens bounds it",
    "per-device-train-batch-size": "--batch-size, which counts over all devices",
    "per-gpu-train-batch-size": "--batch-size, which counts over all devices",
    "predict-file": "--dev | --data",
    "preprocessing-num-workers": "not needed: tokenising takes seconds",
    "push-to-hub": "not needed: bertqa convert --to-hf writes what hf upload takes",
    "report-to": "not needed: the run's folder has metrics.jsonl and report.html",
    "save-steps": "--save-every 500steps",
    "save-strategy": "--save-every",
    "save-total-limit": "not needed: the run's folder has best and last, no others",
    "test-file": "--data | not needed: that is --data of predict",
    "tokenizer-name": "not needed: the vocabulary stands beside the weights",
    "train-batch-size": "--batch-size",
    "train-file": "--train",
    "validation-file": "--dev",
    "version-2-with-negative": "not needed: the data tell",
    "vocab-file": "not needed: the vocabulary stands beside the weights",
    "warmup-proportion": "--warmup",
    "warmup-ratio": "--warmup",
    "warmup-steps": "--warmup, a share of the steps below 1, a number of them above",
}
"""Flag of run_qa.py or run_squad.py -> our flag, or why there is none. ` | ` separates alternatives for verbs with different
flags."""


def verb(main: Callable) -> Callable:
    """Decorate a verb's `main(argv)` to show the library's messages on stderr."""

    @functools.wraps(main)
    def shown(argv=None):
        with said_on_stderr():
            return main(argv)

    return shown


def run_verb(main: Main) -> int:
    """Run `main(argv)` as a command and return its exit status: 0 fine, 2 the user's mistake, 130 interrupted.

    A UserError, an OSError, a full memory and a full disk print `error: ...` on stderr, without a traceback.
    """
    prepare_streams()
    warnings.formatwarning = one_line
    # As it ends, Python looks for garbage among the hundreds of thousands of objects that `import torch` makes: half a
    # second, many on a busy machine, in which Ctrl-C seems to do nothing. It does not look among frozen ones.
    atexit.register(gc.freeze)
    try:
        with said_on_stderr():
            return main(sys.argv[1:])
    except UserError as error:
        message = str(error)
    except BrokenPipeError:
        # The program that reads our output (head, less) has ended: not an error, and nobody is left to tell.
        sys.stderr.close()
        return 0
    except OSError as error:
        message = str(error.strerror or error)
        if error.filename:
            message += f" ({error.filename})"
    except MemoryError:
        message = "the memory is full; give less at once, or close other programs"
    except RecursionError:
        message = "something in the input is nested too deeply for Python"
    except RuntimeError as error:
        message = full_disk(error)
        if not message:
            raise
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # after the ^C that the terminal shows
        print("interrupted", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


def one_line(message, category, *where) -> str:
    """Format a warning without the file and line of our source, which tell the user nothing."""
    kind = "hint" if issubclass(category, SpeedHint) else "warning"
    return f"{kind}: {message}\n"


def full_disk(error: RuntimeError) -> str:
    """Return the message for torch.save's error on a full disk; "" for any other error."""
    # torch writes its archives in C++, and raises RuntimeError in place of OSError.
    words = str(error)
    if "unexpected pos" in words or "failed writing file" in words:
        return f"a file could not be written whole: the disk is full? ({words.splitlines()[0]})"
    return ""


class VerbParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage, and say what an unknown flag probably means."""

    def error(self, message: str):
        """Print the message, with unknown flags explained, and exit."""
        unknown = "unrecognized arguments: "
        if message.startswith(unknown):
            first, *others = message.removeprefix(unknown).split()
            # In `--zzz 1 --qqq 2` the values 1 and 2 need no explanation.
            flags = [word for word in others if word.startswith("--")]
            message = "; ".join(self.explain(word) for word in [first, *flags])
        self.exit(2, f"error: {message} ({self.prog} --help lists what there is)\n")

    def explain(self, word: str) -> str:
        """Explain a word on the command line that is not a flag of this verb."""
        flag = word.partition("=")[0]
        plain = flag.lstrip("-").replace("_", "-")
        if not flag.startswith("-"):
            return f"{word!r} is not expected here"
        if plain == "doc-stride":
            return DOC_STRIDE
        known = [name for name in self._option_string_actions if name.startswith("--")]
        ours = our_name(plain, known)
        if ours.startswith("not needed"):
            return f"{flag} is {ours}"
        if ours:
            name, comma, more = ours.partition(",")
            return f"{flag} is {name} here{comma}{more}"
        names = known + ["--" + other for other in OTHER_NAMES]
        near = difflib.get_close_matches("--" + plain, names, n=1)
        if near and near[0] in known:
            return f"there is no {flag}; did you mean {near[0]}?"
        # The nearest is a flag of run_qa.py, and is explained in turn, if this verb has something like it.
        if near and our_name(near[0].removeprefix("--"), known):
            return f"there is no {flag}; {self.explain(near[0])}"
        return f"there is no {flag}"


def our_name(plain: str, known: Sequence[str]) -> str:
    """Return the entry of OTHER_NAMES for a flag of run_qa.py or run_squad.py, if a verb with the flags `known` has it.

    Returns "" if the flag is not in the table, or the verb has none of its alternatives.
    """
    # "--dev | --data": train has the first, predict the second.
    for ours in OTHER_NAMES.get(plain, "").split(" | "):
        first = ours.split(" ")[0].rstrip(",")
        if first in known or first == "not":
            return ours
    return ""


def add_machine_flags(group) -> None:
    """Add --device, --precision, --int8 and --threads to a parser, or to a group of its flags."""
    add = group.add_argument
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="where to run: cpu, cuda, cuda:1, mps [auto]",
    )
    kinds = ["auto", "fp32", "bf16", "fp16"]
    add(
        "--precision",
        default="auto",
        choices=kinds,
        help="number format [auto: 16 bits on a GPU, fp32 elsewhere]; on CPUs with bf16 units bf16 is "
        f"{BF16_ANSWERS} as fast as fp32",
    )
    add(
        "--int8",
        action="store_true",
        help=f"matrix products in 8 bits, on CPUs only: {INT8_ANSWERS} as fast as fp32, where the model's ranges were measured "
        "(training does that, and bertqa calibrate)",
    )
    add("--threads", type=int, default=0, help="CPU threads; 0 = torch's own choice [0]")


DOC_STRIDE = (
    "--doc-stride means the step between windows in Google's script and their overlap in run_qa; "
    "say --step N or --overlap N"
)


class DocStride(argparse.Action):
    """`--doc-stride`, which is refused because it has two meanings: DOC_STRIDE explains."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(DOC_STRIDE)


class CompactHelp(argparse.HelpFormatter):
    """Help in two narrow columns, so that all flags of a verb fit on a few screens."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:  # line breaks were set by hand
            return text
        return super()._fill_text(text, width, indent)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "--[no-]" + action.option_strings[0].removeprefix("--")
        return super()._format_action_invocation(action)
