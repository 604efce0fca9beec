"""The one family of errors that the product shows to people.

Every message is one sentence (or two) that names the thing, the value given, what was expected and what to do next.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class NeurflowError(Exception):
    """Base of all errors a user can cause or meet; the message is shown as it is, never a traceback."""


class InputError(NeurflowError):
    """A bad argument or bad input (exit code 2 on the command line)."""


class ModelError(InputError):
    """The model name, checkpoint or its arguments cannot be used."""


class DataError(InputError):
    """The image folder, a class in it, or a class name cannot be used."""


class LayerError(InputError):
    """A layer does not exist in the model or cannot be cut at."""


class RunError(InputError):
    """A run does not exist, is not whole, or does not hold what was asked for."""


class FixError(InputError):
    """A file of silencers, such as a fix, cannot be used, or does not fit the model it is applied to."""


class WorkspaceError(InputError):
    """The workspace cannot be read or written (missing, read-only, full)."""


class AccessError(InputError):
    """Something that this person may not do, or a folder that may not be read here."""


class MemoryLimitError(NeurflowError):
    """Not even the smallest piece of work fits into memory."""


class LabelConflictError(NeurflowError):
    """A label was changed by somebody else since it was read; both texts are in the message, and ``theirs`` is the label as it is now."""

    def __init__(self, message: str, theirs: object = None):
        super().__init__(message)
        self.theirs = theirs  # a labels.Label; None when there is none any more


class VerdictConflictError(NeurflowError):
    """A verdict was changed by somebody else since it was read; both are in the message."""


class EditConflictError(NeurflowError):
    """A circuit was edited by somebody else since it was read; the message says what they did."""


class LLMError(NeurflowError):
    """A language model cannot be used at all: no server, a refused key, an unknown model."""


class NoReplyError(LLMError):
    """One request to a language model came to nothing; others may succeed."""


class JobError(NeurflowError):
    """A background job cannot be started or found."""


def near_matches(given: str, known: Iterable[str], limit: int = 5) -> str:
    """A clause naming the known names closest to the one given, e.g. ``' Did you mean resnet18, resnet34?'``.

    Returns an empty string when nothing is close, so that it can be appended to any message.
    """
    known = list(known)
    folded = {name.casefold(): name for name in reversed(known)}
    close = get_close_matches(given.casefold(), folded, n=limit, cutoff=0.5)
    return f" Did you mean {', '.join(folded[name] for name in close)}?" if close else ""
