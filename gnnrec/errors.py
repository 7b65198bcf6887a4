"""The errors a user can meet. Each message says what was found, what was expected and the cure.

`exit_code` is what the command line returns: 2 when the input is wrong, 3 for anything else.
"""


class GnnrecError(Exception):
    """Base of every error that gnnrec raises on purpose."""

    exit_code = 3


class DataError(GnnrecError):
    """An interaction log, an items table or an id list is not usable as it is."""

    exit_code = 2


class ConfigError(GnnrecError):
    """An option, a configuration file or the installation does not allow what was asked."""

    exit_code = 2


class CheckpointError(GnnrecError):
    """A checkpoint or a saved recommender is missing, damaged, or of another format."""

    exit_code = 2


class DownloadError(GnnrecError):
    """A data set could not be fetched or did not have the expected content."""
