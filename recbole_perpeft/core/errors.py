"""The one exception class of the package."""


class PerPEFTError(ValueError):
    """Wrong input: the message names the file, row, item or key and says what to do.

    The command line prints the message without a traceback and ends with exit status 2.
    """
