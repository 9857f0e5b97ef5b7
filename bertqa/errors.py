"""UserError, the exception for mistakes in the user's input, and helpers that word its messages."""

import json
import re


class UserError(ValueError):
    """A mistake in the user's input. The message says what is wrong, where, what is allowed and what to do.

    Verbs print it as one `error:` line and exit with status 2. Any other exception is a bug of ours and keeps its traceback.
    """


class SpeedHint(UserWarning):
    """A warning, given once, that names a faster setting.

    To silence it: warnings.filterwarnings("ignore", category=bertqa.SpeedHint).
    """


def no_data(what: str) -> UserError:
    """Return the error for an input without data: `what` is found in its place, and what to do."""
    return UserError(f"{what}; fetch it or write it again, or give another file")


def show(value: object) -> str:
    """Return the value as JSON to quote in a message: one line, at most 80 characters, printable on any terminal."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that are no text; too large; too deep
        text = f"a {type(value).__name__} that JSON cannot show"
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > 80:
        return text[:77] + "..."
    return text


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an exception's message, or the name of its class if the message is empty."""
    message = str(error).strip()
    if not message:
        return type(error).__name__
    first_line = message.splitlines()[0]
    return re.split(r"\.\s|\.$", first_line)[0]
