"""The errors that leave llmbatch, each with whose fault it is and what can be done.

LlmbatchError
 +- OptionsError      a flag, a variable or a combination of them    exit 2
 +- InputError        the input file as a whole                       exit 2
 +- OutputRefused     another run holds the output, or it is not ours exit 6
 +- ChangedRows       finished rows would now ask something else      exit 2
 +- ProviderStopped   bad key, no quota, unknown model, nobody there  exit 3
 +- StorageError      the local disk (full, permission, I/O)          exit 5
 +- InternalError     the counts do not add up: a bug                 exit 70

A row that fails is no exception: it is a Result with a Failure, counted and written.
"""

from __future__ import annotations


class LlmbatchError(Exception):
    """Base of all errors of llmbatch. The message names the thing, the place and the next step."""

    exit_code = 70


class OptionsError(LlmbatchError):
    """Bad usage or configuration. Nothing was sent."""

    exit_code = 2


class InputError(LlmbatchError):
    """The input can not be read as a whole. Nothing was sent."""

    exit_code = 2


class ChangedRows(LlmbatchError):
    """Finished rows render to another request than the one that was paid for. Nothing was sent."""

    exit_code = 2


class OutputRefused(LlmbatchError):
    """Another run holds the output, or the file there is not ours. Nothing was sent."""

    exit_code = 6


class ProviderStopped(LlmbatchError):
    """The provider refuses everything; rows that were not sent are as they were."""

    exit_code = 3


class StorageError(LlmbatchError):
    """The local disk failed. What was reported done is safe; the same command continues."""

    exit_code = 5


class InternalError(LlmbatchError):
    """A bug in llmbatch; please report it."""

    exit_code = 70
