"""Plan which trainings of tools/train_reader.py fit into --max-minutes, from the time that its first ones took."""

from dataclasses import dataclass

from trainings import Training


@dataclass(frozen=True)
class Cost:
    """The time that a training takes on this machine with this data."""

    epoch: float
    """Seconds of an epoch of a teacher."""
    fixed: float
    """Seconds outside of the steps: loading, compiling, evaluating, writing."""
    growth: float = 1.0
    """A student's windows for each of a teacher's: 1.5 where half of the questions have a new pair."""

    @classmethod
    def of(cls, training: Training, epochs: int, growth: float = 1.0) -> "Cost":
        """Estimate it from a finished training of that many epochs."""
        # Seconds are rounded to a tenth, so a training of a few steps may have 0.
        steps = max(training.steps_seconds, 0.05)
        return cls(steps / epochs, training.seconds - training.steps_seconds, growth)

    @property
    def end(self) -> float:
        """Seconds after the student: evaluations on the held-out questions and on some three times as many."""
        return 3 * self.fixed

    def taught(self, epochs: int, teachers: int) -> float:
        """Seconds of a student; its teachers answer first, each in a tenth of an epoch."""
        return self.fixed + (0.1 * teachers + 1.05 * epochs) * self.growth * self.epoch

    def student(self, left: float, teachers: int) -> int:
        """How many epochs of the last student fit into `left` seconds."""
        rest = left - self.end - self.taught(0, teachers)
        return int(rest / (1.05 * self.growth * self.epoch))


def count_teachers(wanted: int, epochs: int, teacher_epochs: int, cost: Cost, left: float) -> int:
    """Return how many teachers to train in all, with the first one trained and `left` seconds to go.

    As many as wanted, if the student can then still have twice a teacher's epochs (or all that are wanted); else fewer. At
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
    """Return how many students of the middle generation to train, with `left` seconds to go.

    As many as wanted, if the last student can then still have twice their epochs (or all that are wanted); else fewer, but
    not a single one, which would teach less than the teachers do. At 20 s an epoch and 2 s fixed, two students of 1 epoch
    and 3 teachers and a last one of 2 epochs need 2 x 29 + 6 + 48 = 112 s.
    """
    least = min(epochs, 2 * middle_epochs)
    for count in range(wanted, 1, -1):
        rest = left - count * cost.taught(middle_epochs, teachers)
        if cost.student(rest, count) >= least:
            return count
    return 0
