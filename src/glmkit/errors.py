"""Errors that a user can cause, and warnings. Each message is one line: the value, the limit, the next step."""


class GLMKitError(Exception):
    """Base of all errors meant for users; the command line prints it as one line and exits with 2."""


class ConfigError(GLMKitError):
    """A configuration or recipe value that cannot be used."""


class CheckpointError(GLMKitError):
    """A model directory or checkpoint that cannot be read or written as asked."""


class TokenizerError(GLMKitError):
    """A tokenizer file or text that cannot be handled."""


class DataError(GLMKitError):
    """Input data that is unreadable, malformed or empty."""


class TrainingError(GLMKitError):
    """A run that must stop: NaN loss, a batch without targets, a resume that does not match."""


class RequestError(GLMKitError):
    """A call of the public interface with arguments that do not fit."""


class TrimmedHistoryWarning(UserWarning):
    """Turns of a conversation that the model did not read, because the whole does not fit its positions."""
