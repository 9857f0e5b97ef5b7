"""The one exception that means: the user gave us something we cannot work with."""


class UserError(ValueError):
    """A mistake in the user's input. The message says what, where, what is allowed and what to do.

    Verbs print it as one `error:` line and exit with status 2; anything else is a bug of ours and keeps its traceback.
    """
