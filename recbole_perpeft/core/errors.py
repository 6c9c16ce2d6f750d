"""The one exception class of the package."""

import reprlib
from typing import Any

_LONGEST = 300  # characters of a value in a message


class PerPEFTError(ValueError):
    """Wrong input: the message names the file, row, item or key and says what to do.

    The command line prints the message without a traceback and ends with exit status 2.
    """


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 4, 12, 12, 12
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 40


def shown(value: Any) -> str:
    """A value for a message, as Python writes it; of a long one the beginning and the end."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python refuses to write very long numbers out
        return f"a number of {value.bit_length():,} bits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def one_line(error: BaseException) -> str:
    """What an error of a library says, of which some take a line for each tensor."""
    return " ".join(str(error).split())
