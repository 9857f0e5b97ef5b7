"""python -m bertqa, or the command `bertqa`: list the verbs, or run one."""

import difflib
import importlib
import sys

from bertqa import __version__
from bertqa.flags import run_verb

VERBS = {
    "train": "fine-tune, evaluate, tune the no-answer threshold, leave a run folder; classifiers too",
    "predict": "answers for a file, or for one question; classes of texts",
    "score": "the official SQuAD numbers of a predictions file",
    "doctor": "what is wrong with a data set, and the best score it allows",
    "embed": "vectors of texts: [CLS], the mean, or every token",
    "calibrate": "measure what --int8 needs to be fast, once a model",
    "report": "one HTML page for a run, or for several compared",
    "convert": "Hugging Face checkpoints in and out",
}


def main() -> int:
    """Run `bertqa VERB ARGS...` as `python -m bertqa.VERB ARGS...` does. Return the exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in VERBS:
        del sys.argv[1]  # the verb's parser reads the rest
        return run_verb(importlib.import_module(f"bertqa.{name}").main)
    shown = "\n".join(f"  {verb:9}  {text}" for verb, text in VERBS.items())
    text = f"usage: python -m bertqa VERB [...]      (--help after the verb tells more)\n\n{shown}"
    if name in ("-h", "--help"):
        print(text)
        return 0
    if name in ("-V", "--version"):
        print(f"bertqa {__version__}")
        return 0
    near = difflib.get_close_matches(name, VERBS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"error: there is no verb {name!r}{hint}\n{text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
