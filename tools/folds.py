"""Out-of-fold teachers: each labels only training articles that it was not trained on.

The logits of a teacher on its own training windows are little more than the right answers again. So the training articles
are split into K folds; a teacher is trained on all folds but one, and labels the windows of that one, among them the new
pairs (new_pairs.py) that were made from its articles. Several teachers of one fold label it with their mean logits.
"""

import copy
import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.settings import DistillationSettings
from bertqa.training.distillation import Teaching, ask_teachers
from bertqa.training.question_answering import QuestionAnswering


def split_folds(examples: Sequence[Example], count: int, seed: int) -> list[list[str]]:
    """Deal whole articles into folds by seed. Returns the titles of each fold.

    Raises:
        UserError: for fewer than two folds, or more than there are articles.
    """
    titles = sorted({example.title for example in examples})
    if not 2 <= count <= len(titles):
        raise UserError(
            f"--folds {count}: give 2 to {len(titles)}, as many as there are training articles, or 0"
        )
    random.Random(seed).shuffle(titles)
    return [titles[number::count] for number in range(count)]


def ask_fold_teachers(
    settings: DistillationSettings,
    folds: Sequence[Sequence[str]],
    task: QuestionAnswering,
    dtype: torch.dtype,
) -> Teaching:
    """Return the logits of all training windows, each by the teachers that were not trained on its article.

    Args:
        settings: `teacher` names them.
        folds: for each teacher the titles of its fold; every training article is in the fold of some teacher.
        task: the student's.
        dtype: of autocast while the teachers answer.
    """
    teachers_of_fold = defaultdict(list)
    for teacher, titles in zip(settings.teacher, folds, strict=True):
        teachers_of_fold[tuple(titles)].append(teacher)
    fold_of_title = {}
    for number, titles in enumerate(teachers_of_fold):
        fold_of_title.update(dict.fromkeys(titles, number))
    fold_of_question = [fold_of_title[example.title] for example in task.train.trainable()]
    fold = np.array(fold_of_question)[task.windows.question]  # (W,)
    lengths = task.windows.lengths.astype(np.int64)  # (W,)
    fold_of_token = torch.from_numpy(np.repeat(fold, lengths)).to(task.device)  # (T,)

    logits = torch.empty(len(fold_of_token), 2, dtype=torch.float16, device=task.device)
    sums = {}
    fingerprints = []
    for number, teachers in enumerate(teachers_of_fold.values()):
        of_fold = copy.copy(task)
        of_fold.windows = task.windows.select(fold == number)
        asked = replace(settings, teacher=teachers)
        labelled = ask_teachers(asked, [Path(name) for name in teachers], of_fold, dtype)
        # A fold's windows, and so their tokens, are in the order in which they stand among all.
        logits[fold_of_token == number] = labelled.logits
        sums |= labelled.sums
        fingerprints.append(labelled.fingerprint)
    return Teaching(
        sums=sums,
        fingerprint=hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()[:32],
        logits=logits,
        first=torch.from_numpy(lengths.cumsum() - lengths).to(task.device),
        weight=settings.teacher_weight,
        temperature=settings.temperature,
    )
