"""Exceptions of this package. Each message states what is wrong, where, and what to do."""


class Raymap3rError(Exception):
    """Base of all errors of this package."""


class CheckpointError(Raymap3rError):
    """A weights file cannot be used: it is missing, unsafe, or does not contain the expected network."""


class InputError(Raymap3rError, ValueError):
    """An image, calibration, video, folder or bag cannot be used."""


class OptionError(Raymap3rError, ValueError):
    """An option has a value that is not allowed."""


def reason_of(error: Exception) -> str:
    """Return the message of an error, or its class name if the message is empty."""
    return str(error) or type(error).__name__
