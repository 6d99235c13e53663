"""The exceptions and the warning that cappy-lite raises; every other module imports them from here."""


class CappyError(Exception):
    """Base of every exception that cappy-lite raises on purpose."""


class InputTypeError(CappyError, TypeError):
    """An argument has the wrong type; the message names the argument and what it should be."""


class InputValueError(CappyError, ValueError):
    """An argument has the right type and a value that can't be used; the message names both."""


class ModelError(CappyError, ValueError):
    """A model can't be found or loaded; the message names the file and how to get it right."""


class TruncationWarning(UserWarning):
    """Text was longer than the model reads, and was cut; the message has the counts."""
