"""Exceptions of look-ups."""


class TransformException(Exception):
    """Base of all tf2 exceptions."""


class LookupException(TransformException):
    """A frame does not exist, or the tree has a loop."""


class ConnectivityException(TransformException):
    """Both frames exist, but not in one tree."""


class ExtrapolationException(TransformException):
    """The requested time lies outside the stored transforms."""


class InvalidArgumentException(TransformException):
    """An invalid frame name: empty, or with a leading slash."""


class TimeoutException(TransformException):
    """A transform did not arrive in time."""
