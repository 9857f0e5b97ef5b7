"""python -m bertqa.doctor FILE [OTHER]: what is wrong with a data set, and the best score that it allows.

That score is the ceiling (qa/ceiling.py): what a model would get that always gives the best answer it can give.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows, check_window_settings
from bertqa.errors import UserError
from bertqa.flags import read_config_file, run_verb
from bertqa.qa import metrics
from bertqa.qa.ceiling import (
    FAULTS,
    INSIDE,
    NO_WINDOW,
    TOO_LONG,
    UNPLACED,
    View,
    best_answer,
    ceiling,
    place,
    views,
)
from bertqa.qa.metrics import normalise_answer

DEFAULTS = {"max_length": 384, "overlap": 128, "max_question": 64, "max_answer_length": 30}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bertqa.doctor",
        description="What is wrong with a data set, and the best score that it allows.",
        epilog="example: python -m bertqa.doctor train.json dev.json --weights my-model --fix train-fixed.json",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="questions, of any form that train reads, .gz or not; "
        "squad1, squad2 (the official dev files), squad2-train are fetched",
    )
    parser.add_argument(
        "other",
        metavar="OTHER",
        type=Path,
        nargs="?",
        help="data that FILE should not overlap with",
    )
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.add_argument(
        "--explain", metavar="N", type=int, default=5, help="questions to list of each problem [5]"
    )
    windows = parser.add_argument_group(
        "windows", "defaults are those of the model's qa.json, then these in brackets"
    )
    windows.add_argument(
        "--weights", metavar="W", type=Path, help="folder with a tokenizer [the bundled reader]"
    )
    windows.add_argument("--max-length", metavar="N", type=int, help="tokens of a window [384]")
    windows.add_argument(
        "--overlap", metavar="N", type=int, help="tokens that neighbouring windows share [128]"
    )
    windows.add_argument(
        "--step", metavar="N", type=int, help="or: tokens from one window's start to the next one's"
    )
    windows.add_argument(
        "--max-question", metavar="N", type=int, help="tokens after which questions are cut [64]"
    )
    windows.add_argument(
        "--max-answer-length", metavar="N", type=int, help="most tokens of an answer [30]"
    )
    windows.add_argument("--doc-stride", help=argparse.SUPPRESS)
    show = parser.add_argument_group("instead of the report")
    show.add_argument(
        "--show", metavar="N", type=int, help="print N random questions, answers and windows marked"
    )
    show.add_argument(
        "--id", metavar="ID", nargs="+", action="extend", help="print these questions"
    )
    show.add_argument("--seed", metavar="S", type=int, default=0, help="of the random choice [0]")
    parser.add_argument(
        "--fix", metavar="OUT", type=Path, help="write SQuAD v2 JSON, .gz or not, offsets repaired"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Report, show or repair. Returns the exit status: 0 also for sick data, for it is the report that judges."""
    args = parse_args(argv)
    check(args)
    tokenizer, settings = prepare(args)
    data = read_examples(args.file)
    other = read_examples(args.other) if args.other else None
    fixed = fix(data, args.fix) if args.fix else None
    if args.show is not None or args.id:
        if fixed:
            say(fixed_line(fixed), sys.stderr)
        show(choose(data, args), tokenizer, settings, marks_for(sys.stdout))
        return 0
    report = examine(data, other, tokenizer, settings)
    if fixed:
        report["fixed"] = fixed
    say(
        json.dumps(report, indent=2)
        if args.json
        else "\n".join(table(report, max(args.explain, 0)))
    )
    return 0


def check(args: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    if args.doc_stride:
        raise UserError(
            "--doc-stride means the step between windows in Google's script and their overlap in run_qa; "
            "say --step N or --overlap N"
        )
    if args.json and (args.show is not None or args.id):
        raise UserError("--show and --id print text for people, not JSON; leave out --json")
    if args.show is not None and args.show < 1:
        raise UserError(f"--show {args.show}: give the number of questions to print, at least 1")
    for source in filter(None, (args.file, args.other)):
        if args.fix and args.fix.exists() and source.exists() and args.fix.samefile(source):
            raise UserError(f"--fix {args.fix} would overwrite {source}; give another name")


def prepare(args: argparse.Namespace) -> tuple[WordPiece | None, dict]:
    """The tokenizer (None: there is none), and the settings: DEFAULTS < the model's qa.json < flags."""
    folder = args.weights
    if folder is None:
        from bertqa.settings import bundled_reader

        folder = Path(bundled_reader()) if Path(bundled_reader()).is_dir() else None
    saved = (
        read_config_file(folder / "qa.json") if folder and (folder / "qa.json").is_file() else {}
    )
    given = {
        name: value for name in (*DEFAULTS, "step") if (value := getattr(args, name)) is not None
    }
    settings: dict = dict(DEFAULTS)
    for layer in (saved, given):
        if layer.keys() & {"overlap", "step"}:  # the two exclude each other, so they go together
            settings |= {"overlap": layer.get("overlap"), "step": layer.get("step")}
        settings |= {name: layer[name] for name in DEFAULTS if name != "overlap" and name in layer}
    settings = {name: value for name, value in settings.items() if value is not None}
    check_window_settings(
        settings["max_length"],
        settings.get("overlap"),
        settings.get("step"),
        settings["max_question"],
    )
    if settings["max_answer_length"] < 1:
        raise UserError(
            f"max_answer_length is {settings['max_answer_length']}; an answer needs at least 1 token"
        )
    return WordPiece.load(folder) if folder else None, settings


def examine(
    data: Dataset, other: Dataset | None, tokenizer: WordPiece | None, settings: dict
) -> dict:
    """The whole report, as JSON has it; without a tokenizer it has no "settings" and nothing that counts tokens."""
    examples = data.examples
    again, contradictions = repeats(examples)
    report = {
        "file": data.path,
        "format": data.format,
        "sha256": data.sha256,
        "version": data.version,
        "questions": len(examples),
        "impossible": sum(not example.answer_texts for example in examples),
        "paragraphs": len({example.context for example in examples}),
        "articles": len({example.title for example in examples} - {""}),
        "answers_per_question": dict(
            sorted(Counter(len(example.answer_texts) for example in examples).items())
        ),
        "repaired": data.repaired,
        "unplaced_answers": sum(
            start < 0 for example in examples for start in example.answer_starts
        ),
        "rejected": [{"id": question.id, "reason": question.reason} for question in data.rejected],
        "duplicates": again,
        "contradictions": contradictions,
    }
    if other:
        report["overlap"] = overlap(data, other)
    return report | (token_report(data, tokenizer, settings) if tokenizer else {})


# ---- questions among themselves ----


def question_key(question: str) -> str:
    """What makes two questions the same: case, blanks and closing punctuation aside."""
    return " ".join(question.casefold().split()).rstrip(" ?!.") or question.strip()


def repeats(examples: Sequence[Example]) -> tuple[list[list[str]], list[dict]]:
    """Ids of questions asked several times about one paragraph, and those of them that contradict each other.

    They do where one is answerable and one impossible, or where two have no accepted answer in common.
    """
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        groups.setdefault((question_key(example.question), example.context), []).append(example)
    again = [group for group in groups.values() if len(group) > 1]
    contradictions = []
    for group in again:
        ids = [example.id for example in group]
        golds = [set(map(normalise_answer, example.answer_texts)) for example in group]
        if not all(golds) and any(golds):
            contradictions.append({"ids": ids, "kind": "answerable and impossible"})
        elif any(a.isdisjoint(b) for n, a in enumerate(golds) for b in golds[:n] if a and b):
            contradictions.append({"ids": ids, "kind": "different answers"})
    return [[example.id for example in group] for group in again], contradictions


def overlap(data: Dataset, other: Dataset) -> dict:
    """What `data` shares with `other`, blanks in paragraphs aside. Lists hold ids of `data`."""

    def paragraph(example: Example) -> str:
        return " ".join(example.context.split())

    ids, titles = (
        {getattr(example, name) for example in other.examples} for name in ("id", "title")
    )
    paragraphs = {paragraph(example) for example in other.examples}
    questions = {question_key(example.question) for example in other.examples}
    pairs = {(question_key(example.question), paragraph(example)) for example in other.examples}
    on_shared = [example for example in data.examples if paragraph(example) in paragraphs]
    return {
        "file": other.path,
        "questions_in_it": len(other.examples),
        "articles": len(
            {example.title for example in data.examples if example.title in titles} - {""}
        ),
        "paragraphs": len({paragraph(example) for example in on_shared}),
        "questions_on_them": len(on_shared),
        "ids": [example.id for example in data.examples if example.id in ids],
        "questions": [
            example.id for example in data.examples if question_key(example.question) in questions
        ],
        "questions_and_paragraphs": [
            e.id for e in on_shared if (question_key(e.question), paragraph(e)) in pairs
        ],
    }


# ---- what tokens and windows allow ----


def token_report(data: Dataset, tokenizer: WordPiece, settings: dict) -> dict:
    """Lengths, windows, answers that the tokens do not allow, and the ceiling."""
    from bertqa.score import is_v1

    most = settings["max_answer_length"]
    windows = build_windows(
        data.examples,
        tokenizer,
        progress="tokens" if sys.stderr.isatty() else None,
        **{name: value for name, value in settings.items() if name != "max_answer_length"},
    )
    v1, best, placed = is_v1(data), {}, []
    for example, view in zip(data.examples, views(windows), strict=True):
        answers = place(example, view, most)
        best[example.id] = best_answer(example, view, answers, most, v1)
        placed.append(answers)
    scores = metrics.score_answers(data.examples, best, v1=v1)
    several = np.bincount(windows.question) > 1
    faulty = {
        fault: [
            {
                "id": example.id,
                "answer": answer.text,
                "tokens": answer.tokens,
                "nearest": answer.nearest,
            }
            for example, answers in zip(data.examples, placed, strict=True)
            for answer in answers
            if answer.fault == fault
        ]
        for fault in FAULTS
    }
    lengths = {
        "question": windows.questions.counts,
        "paragraph": windows.contexts.counts,
        "answer": [answer.tokens for answers in placed for answer in answers if answer.tokens],
    }
    return {
        "vocabulary": str(tokenizer.folder),
        "settings": settings,
        "tokens": {name: percentiles(counts) for name, counts in lengths.items() if len(counts)},
        "windows": {
            "count": len(windows),
            "filled": float(windows.lengths.mean() / settings["max_length"]),
            "questions_with_several": int(several.sum()),
        },
        "questions_cut": windows.cut_questions,
        "answers": {"distinct": sum(map(len, placed)), "faulty": faulty},
        "ceiling": ceiling(data.examples, placed, scores, v1),
    }


def percentiles(counts: Sequence[int]) -> dict:
    """Values that do occur in `counts`, so whole numbers."""
    values = np.percentile(counts, (0, 50, 90, 99, 100), method="inverted_cdf")
    return dict(zip(("least", "median", "90 %", "99 %", "most"), map(int, values), strict=True))


# ---- for people ----


def say(text: str, file=None) -> None:
    """Print what a terminal of any encoding can show: data may hold lone surrogates and escape codes."""
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file)


def line(label: str, number, note: str = "") -> str:
    return f"{label:<26}{number if isinstance(number, str) else format(number, ','):>10}   {note}".rstrip()


def brief(text: str, width: int) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= width else text[: width - 3] + "..."


def printable(text: str) -> str:
    """Control characters but tab and newline could do anything to a terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def table(report: dict, most: int) -> Iterator[str]:
    """The report as lines of at most 100 columns (a long path may take more), `most` questions of each problem."""
    yield f"{report['file']}   ({report['format']}, sha256 {report['sha256'][:12]})"
    yield line("SQuAD version", report["version"], "2.0 has impossible questions, 1.1 has none")
    share = report["impossible"] / report["questions"]
    yield line(
        "questions", report["questions"], f"{report['impossible']:,} impossible ({share:.1%})"
    )
    yield line(
        "paragraphs",
        report["paragraphs"],
        f"in {report['articles']:,} articles" if report["articles"] else "",
    )
    spread = Counter(report["answers_per_question"])
    answerable = spread.total() - spread.pop(0, 0)
    given = sum(n * count for n, count in spread.items())
    note = (
        f"at most {max(spread)} a question, {given / answerable:.1f} on average" if spread else ""
    )
    yield line("answers", given, note)
    yield line("offsets repaired", report["repaired"])
    yield line(
        "answers without a place",
        report["unplaced_answers"],
        "they count in scores, but cannot be trained on",
    )
    yield line(
        "questions rejected", len(report["rejected"]), "training leaves them out, scores do not"
    )
    kinds = Counter(
        re.sub(r'the answer ".*?(?= does not occur| occurs more)', "an answer", question["reason"])
        for question in report["rejected"]
    )
    yield from (f"  {count:,} x {brief(kind, 85)}" for kind, count in kinds.most_common(5))
    yield from (
        f"  {question['id']}   {brief(question['reason'], 60)}"
        for question in report["rejected"][:most]
    )
    yield line(
        "asked again",
        sum(len(ids) - 1 for ids in report["duplicates"]),
        "same question, same paragraph",
    )
    yield line(
        "contradictions",
        len(report["contradictions"]),
        "such questions with answers that exclude each other",
    )
    yield from (
        f"  {brief(' '.join(pair['ids']), 66)}   {pair['kind']}"
        for pair in report["contradictions"][:most]
    )
    if "overlap" in report:
        yield from overlap_table(report["overlap"])
    if "settings" in report:
        yield from token_table(report, most)
    else:
        yield "Tokens, windows and the ceiling are left out: they need a vocabulary. Give --weights FOLDER."
    if "fixed" in report:
        yield from ("", fixed_line(report["fixed"]))


def overlap_table(shared: dict) -> Iterator[str]:
    yield f"\nshared with {shared['file']}   ({shared['questions_in_it']:,} questions)"
    yield line("ids", len(shared["ids"]))
    yield line("articles", shared["articles"], "by title")
    yield line(
        "paragraphs",
        shared["paragraphs"],
        f"{shared['questions_on_them']:,} questions are about them",
    )
    same = len(shared["questions_and_paragraphs"])
    yield line("questions", len(shared["questions"]), f"{same:,} of them about the same paragraph")


def token_table(report: dict, most: int) -> Iterator[str]:
    settings, windows = report["settings"], report["windows"]
    stride = f"step {settings['step']}" if "step" in settings else f"overlap {settings['overlap']}"
    yield f"\ntokens of {report['vocabulary']}"
    lengths = report["tokens"]
    yield " " * 26 + "".join(f"{name:>10}" for name in next(iter(lengths.values())))
    yield from (
        f"{name:<26}" + "".join(f"{value:>10,}" for value in row.values())
        for name, row in lengths.items()
    )
    yield ""
    filled = f"{windows['filled']:.1%} filled"
    yield line(
        "windows", windows["count"], f"of {settings['max_length']} tokens, {stride}; {filled}"
    )
    yield line("questions with several", windows["questions_with_several"])
    yield line("questions cut", report["questions_cut"], f"after {settings['max_question']} tokens")
    yield line("distinct answers", report["answers"]["distinct"])
    notes = {
        NO_WINDOW: "no window holds them whole",
        TOO_LONG: f"more than {settings['max_answer_length']}",
        INSIDE: "no span hits them exactly; scoring may forgive it",
    }
    yield from (
        line(f"  {fault}", len(report["answers"]["faulty"][fault]), notes.get(fault, ""))
        for fault in FAULTS
    )
    figures, below = report["ceiling"]["figures"], report["ceiling"]["below"]
    exact, f1 = figures.get("exact_match", figures.get("exact")), figures["f1"]
    yield line(
        "ceiling", f"{exact:.3f}", f"EM and {f1:.3f} F1: the best that any model could score"
    )
    if "HasAns_exact" in figures:
        yield line(
            "  with answer",
            f"{figures['HasAns_exact']:.3f}",
            f"EM and {figures['HasAns_f1']:.3f} F1",
        )
    yield line("  questions below 100 EM", len(below))
    for question in below[:most]:
        yield f"  {question['id']}   {brief(question['question'], 66)}"
        for answer in question["answers"]:
            yield f"    {brief(json.dumps(answer['text'], ensure_ascii=False), 38)}: {why(answer, settings)}"
        yield f"    best: {brief(json.dumps(question['best'], ensure_ascii=False), 60)}, F1 {question['f1']:.1f}"
    if len(below) > most:
        yield f"  ... and {len(below) - most:,} more: --explain {len(below)}, or --json"


def why(answer: dict, settings: dict) -> str:
    """What stands between an answer and the windows, in a few words."""
    if answer["fault"] == TOO_LONG:
        return f"{answer['tokens']} tokens, --max-answer-length is {settings['max_answer_length']}"
    if answer["fault"] == INSIDE:
        return (
            f"tokens can only give {brief(json.dumps(answer['nearest'], ensure_ascii=False), 35)}"
        )
    return answer["fault"] or "without words"


# ---- --show ----


def choose(data: Dataset, args: argparse.Namespace) -> list[Example]:
    """The named questions, or random ones in file order."""
    if not args.id:
        rows = random.Random(args.seed).sample(
            range(len(data.examples)), min(args.show, len(data.examples))
        )
        return [data.examples[row] for row in sorted(rows)]
    by_id = {example.id: example for example in data.examples}
    unknown = [id for id in args.id if id not in by_id]
    if unknown:
        raise UserError(
            f"{args.file}: has no question {', '.join(map(repr, unknown))}; ids are like "
            + ", ".join(map(repr, list(by_id)[:3]))
        )
    return [by_id[id] for id in args.id]


def marks_for(stream) -> tuple[str, str, str]:
    """What opens an answer, closes it, and a pattern for the ends of a window: codes for a terminal, brackets else."""
    if stream.isatty() and "NO_COLOR" not in os.environ:
        return "\x1b[7m", "\x1b[27m", "\x1b[36m{}\x1b[39m"
    return "[[", "]]", "{}"


def show(
    examples: list[Example],
    tokenizer: WordPiece | None,
    settings: dict,
    marks: tuple[str, str, str],
) -> None:
    """Print questions with their paragraphs: the answer that training uses marked, and where windows begin and end."""
    shown: list[View | None] = [None] * len(examples)
    if tokenizer:
        names = [name for name in settings if name != "max_answer_length"]
        shown = list(
            views(build_windows(examples, tokenizer, **{name: settings[name] for name in names}))
        )
    for example, view in zip(examples, shown, strict=True):
        say(f"id        {example.id}" + (f"   ({example.title})" if example.title else ""))
        say(f"question  {printable(example.question)}")
        counts = Counter(zip(example.answer_texts, example.answer_starts, strict=True))
        for (text, start), times in counts.items():
            where = f"at {start}" if start >= 0 else UNPLACED
            say(
                f"answer    {printable(text)}   ({where}{f', given {times} times' if times > 1 else ''})"
            )
        if not counts:
            say("answer    (impossible)")
        if view:
            legend = "; {2 begins the second, 1} ends the first" if len(view.first) > 1 else ""
            say(f"windows   {len(view.first)} over {len(view.starts):,} tokens{legend}")
        say(marked(example, view, marks) + "\n")


def marked(example: Example, view: View | None, marks: tuple[str, str, str]) -> str:
    """The paragraph with its marks. A single window needs none."""
    opening, closing, window = marks
    places = []  # (character, rank among marks at one place, mark)
    for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start >= 0:
            places += [(start, 3, opening), (start + len(text), 0, closing)]
            break
    if view and len(view.first) > 1:
        for n, (first, stop) in enumerate(zip(view.first, view.stop, strict=True), 1):
            places += [(int(view.starts[first]), 2, window.format(f"{{{n} "))]
            places += [(int(view.ends[stop - 1]), 1, window.format(f" {n}}}"))]
    pieces, last = [], 0
    for character, _, mark in sorted(places):
        pieces += [printable(example.context[last:character]), mark]
        last = character
    return "".join(pieces) + printable(example.context[last:])


# ---- --fix ----


def fix(data: Dataset, path: Path) -> dict:
    """Write what training can use as SQuAD v2 JSON, every offset right; -> what was written and left out.

    Answers that could not be placed are left out too: SQuAD's format has no way to say so.
    """
    kept = data.trainable()
    if not kept:
        raise UserError(
            f"{data.path}: all {len(data.examples):,} questions are rejected; nothing is left to write"
        )
    articles: dict[str, dict[str, list[dict]]] = {}
    lost = 0
    for example in kept:
        pairs = list(zip(example.answer_texts, example.answer_starts, strict=True))
        answers = [{"text": text, "answer_start": start} for text, start in pairs if start >= 0]
        lost += len(pairs) - len(answers)
        articles.setdefault(example.title, {}).setdefault(example.context, []).append(
            {
                "id": example.id,
                "question": example.question,
                "answers": answers,
                "is_impossible": not answers,
            }
        )
    document = {
        "version": "v2.0",
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {"context": context, "qas": qas} for context, qas in paragraphs.items()
                ],
            }
            for title, paragraphs in articles.items()
        ],
    }
    # UTF-8 has no lone surrogates; backslashreplace writes \udXXX, which is just how JSON spells them.
    content = json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")
    part = path.with_name(path.name + ".part")
    part.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    os.replace(part, path)
    return {
        "file": str(path),
        "questions": len(kept),
        "repaired": data.repaired,
        "rejected_left_out": len(data.examples) - len(kept),
        "answers_left_out": lost,
    }


def fixed_line(fixed: dict) -> str:
    return (
        f"wrote {fixed['file']}: {fixed['questions']:,} questions, {fixed['repaired']:,} offsets repaired; "
        f"left out: {fixed['rejected_left_out']:,} rejected questions, "
        f"{fixed['answers_left_out']:,} answers without a place"
    )


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
