"""What fits into --max-minutes of tools/train_reader.py: decided by the time that its first trainings took."""

from dataclasses import dataclass

from trainings import Training


@dataclass(frozen=True)
class Cost:
    """Seconds that a training takes on this machine, with this data."""

    epoch: float
    """Of the training windows, without new pairs."""
    fixed: float
    """What is not steps: loading, compiling, the evaluation, writing."""
    growth: float = 1.0
    """How many windows a student has for each of a teacher's: 1.5 where half of the questions have a new pair."""

    @classmethod
    def of(cls, training: Training, epochs: int, growth: float = 1.0) -> "Cost":
        """What a training of so many epochs has shown."""
        # Seconds are known to a tenth: a training of next to no steps may say 0.
        steps = max(training.steps_seconds, 0.05)
        return cls(steps / epochs, training.seconds - training.steps_seconds, growth)

    @property
    def end(self) -> float:
        """What comes behind the student: measured on the held-out questions, and again on some three times as many."""
        return 3 * self.fixed

    def taught(self, epochs: int, teachers: int) -> float:
        """A student of so many teachers; they are asked first, each at a tenth of an epoch."""
        return self.fixed + (0.1 * teachers + 1.05 * epochs) * self.growth * self.epoch

    def student(self, left: float, teachers: int) -> int:
        """The epochs that the last student can have in `left` seconds."""
        rest = left - self.end - self.taught(0, teachers)
        return int(rest / (1.05 * self.growth * self.epoch))


def count_teachers(wanted: int, epochs: int, teacher_epochs: int, cost: Cost, left: float) -> int:
    """How many teachers there are, with the first one trained and `left` seconds to go.

    As many as wanted, if the student then still has twice a teacher's epochs (or all that it should have); else fewer. At
    20 s an epoch and 2 s fixed, three teachers of 3 epochs and a student of 6 need 2 x 62 + 6 + 128 + 6 = 264 s.
    """
    least = min(epochs, 2 * teacher_epochs)
    teacher = cost.fixed + teacher_epochs * cost.epoch
    for count in range(wanted, 1, -1):
        if cost.student(left - (count - 1) * teacher, count) >= least:
            return count
    return 1


def count_middle(
    wanted: int, epochs: int, middle_epochs: int, cost: Cost, left: float, teachers: int
) -> int:
    """How many students the middle generation has, with `left` seconds to go.

    As many as wanted, if the last student then still has twice their epochs (or all that it should have); else fewer, or
    none: one alone would teach less than the teachers do. At 20 s an epoch and 2 s fixed, two students of 1 epoch and 3
    teachers and a last one of 2 epochs need 2 x 29 + 6 + 48 = 112 s.
    """
    least = min(epochs, 2 * middle_epochs)
    for count in range(wanted, 1, -1):
        rest = left - count * cost.taught(middle_epochs, teachers)
        if cost.student(rest, count) >= least:
            return count
    return 0
