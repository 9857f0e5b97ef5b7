"""The trainings of tools/train_reader.py: teachers, perhaps students between, the student; and how many fit into the time."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

from planning import Cost, count_middle, count_teachers
from results import Results
from trainings import Bench, Training, say

from bertqa.files import read_json, write_json


@dataclass
class Generations:
    """Trains one generation after the other."""

    args: argparse.Namespace
    bench: Bench
    """Makes the teachers."""
    students: Bench
    """Makes all others."""
    results: Results
    deadline: float
    """When everything must have ended, on time.monotonic's clock."""

    def train(self) -> dict[str, list[Training]]:
        """Train all of them. Returns the models that taught, by the name of their generation."""
        args = self.args
        growth = len(self.students.task.windows) / len(self.bench.task.windows)
        if args.folds:
            teachers = self.train_fold_teachers()
            growth *= args.folds / (args.folds - 1)
        else:
            teachers = self.train_teachers(growth)
        # The first teacher also compiled, the last one found it done, as the students will.
        cost = Cost.of(teachers[-1], args.teacher_epochs, growth)
        middle = self.train_middle(teachers, cost)
        if middle:
            # They were trained on the student's windows, so nothing grows.
            cost = Cost.of(middle[-1], args.middle_epochs)
        self.train_student(middle or teachers, cost)
        return {"teachers": teachers, "students between": middle}

    def train_fold_teachers(self) -> list[Training]:
        """Train the teachers of each fold on the articles of the other folds (folds.py)."""
        args = self.args
        teachers = []
        for fold, titles in enumerate(self.results.facts["split"]["folds"]):
            other_folds = self.bench.learning_from(
                str(self.bench.out / f"data/not-fold{fold}.json")
            )
            for number in range(fold, args.teachers, args.folds):
                flags = self.teacher_flags(number)
                teachers.append(other_folds.train(f"teacher{number}", *flags, fold=titles))
                self.results.write()
        return teachers

    def train_teachers(self, growth: float) -> list[Training]:
        """Train the first teacher, and as many more as there is then time for."""
        args = self.args
        teachers = [self.bench.train("teacher0", *self.teacher_flags(0))]
        self.results.write()
        cost = Cost.of(teachers[0], args.teacher_epochs, growth)

        def fitting() -> int:
            recipe = (args.teachers, args.epochs, args.teacher_epochs, cost)
            middle = args.middle * cost.taught(args.middle_epochs, args.teachers)
            if count_teachers(*recipe, self.left - middle) == args.teachers:
                return args.teachers
            # Where the time is short, the middle generation goes first.
            return count_teachers(*recipe, self.left)

        count = self.decided("teachers", fitting, args.teachers)
        say(f"{count} teacher(s)")
        for number in range(1, count):
            teachers.append(self.bench.train(f"teacher{number}", *self.teacher_flags(number)))
            self.results.write()
        return teachers

    def train_middle(self, teachers: list[Training], cost: Cost) -> list[Training]:
        """Train students that learn from the teachers and teach the last one, as many as there is time for."""
        args = self.args

        def fitting() -> int:
            recipe = (args.middle, args.epochs, args.middle_epochs, cost)
            return count_middle(*recipe, self.left, len(teachers))

        count = self.decided("middle", fitting, args.middle)
        if args.middle:
            say(f"{count} student(s) between teachers and student")
        middle = []
        for number in range(count):
            # Far from the teachers' seeds: another fresh head, another order of the data.
            flags = ["--epochs", str(args.middle_epochs), "--seed", str(args.seed + 20 + number)]
            flags += self.student_flags()
            middle.append(self.students.train(f"middle{number}", *flags, teachers=teachers))
            self.results.write()
        return middle

    def train_student(self, teachers: list[Training], cost: Cost) -> None:
        """Train the last student, for as many epochs as there is time for."""
        args = self.args

        def fitting() -> int:
            return max(1, min(args.epochs, cost.student(self.left, len(teachers))))

        epochs = self.decided("epochs", fitting, args.epochs)
        say(f"a student of {epochs} epochs")
        flags = ["--epochs", str(epochs), "--seed", str(args.seed + 10), *self.student_flags()]
        self.students.train("student", *flags, teachers=teachers)
        self.results.write()

    def teacher_flags(self, number: int) -> list[str]:
        """Return the flags of a teacher, whose number decides its seed."""
        flags = ["--epochs", str(self.args.teacher_epochs), "--lr", self.args.teacher_lr]
        return [*flags, "--seed", str(self.args.seed + number)]

    def student_flags(self) -> list[str]:
        """Return the flags that all students share."""
        args = self.args
        flags = ["--lr", args.lr, "--dropout", args.dropout]
        return [*flags, "--temperature", args.temperature, "--teacher-weight", args.teacher_weight]

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.monotonic()

    def decided(self, what: str, fitting: Callable[[], int], wanted: int) -> int:
        """Return what an earlier sitting decided on; else decide, by the time if it is limited, and note it."""
        note = self.bench.out / f"{what}.json"
        if not note.exists():
            write_json(note, fitting() if self.args.max_minutes else wanted)
        return read_json(note)
