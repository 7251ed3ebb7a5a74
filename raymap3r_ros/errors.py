"""What this package raises. Every message says what was wrong, where, and what to do."""


class Raymap3rError(Exception):
    """Base of all errors of this package."""


class CheckpointError(Raymap3rError):
    """A weights file cannot be used: missing, unsafe, or not the network it claims to be."""


class InputError(Raymap3rError, ValueError):
    """An image, calibration, video, folder or bag cannot be used."""


class OptionError(Raymap3rError, ValueError):
    """An option has a value that is not allowed."""


def reason_of(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return str(error) or type(error).__name__
