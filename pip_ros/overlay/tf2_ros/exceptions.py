"""What a look-up raises."""


class TransformException(Exception):
    """Base of all tf2 exceptions."""


class LookupException(TransformException):
    """A frame does not exist, or the tree has a loop."""


class ConnectivityException(TransformException):
    """Both frames exist, but not in one tree."""


class ExtrapolationException(TransformException):
    """The time asked for lies outside what is stored."""


class InvalidArgumentException(TransformException):
    """A frame name that cannot be one: empty, or with a leading slash."""


class TimeoutException(TransformException):
    """A transform did not come in time."""
