"""The one exception that means: the user gave us something we cannot work with."""

import re


class UserError(ValueError):
    """A mistake in the user's input. The message says what, where, what is allowed and what to do.

    Verbs print it as one `error:` line and exit with status 2; anything else is a bug of ours and keeps its traceback.
    """


class SpeedHint(UserWarning):
    """Something faster is at hand: said once, and silenced by warnings.filterwarnings("ignore", category=bertqa.SpeedHint)."""


def first_sentence(error: BaseException) -> str:
    """As much of what an error says as fits into a message of ours."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.split(r"\.\s|\.$", line)[0]
