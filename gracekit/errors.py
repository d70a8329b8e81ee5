"""The exceptions that gracekit raises for a caller to catch.

    GracekitError
    ├── RecipeError               the recipe: unknown key, bad value, missing file
    ├── UsageError                a function was given a value that it does not take
    ├── DataError                 the samples: unreadable file, missing field, nothing to train on
    ├── CheckpointError           one checkpoint cannot be used
    │   ├── CheckpointIncompleteError   still being written, or truncated
    │   ├── CheckpointVanishedError     deleted while it was being read
    │   └── CheckpointMismatchError     another architecture or vocabulary than expected
    ├── MeasureError              the model pass cannot go on (no memory, nothing finite)
    ├── StoreError                the store directory
    │   ├── StoreNotFoundError          nothing there
    │   ├── StoreFormatError            not a store, damaged, or written by a newer gracekit
    │   ├── StoreDataMismatchError      made from other data
    │   ├── StoreLockedError            another process works on it
    │   ├── StoreWriteError             disk full, read-only or failing
    │   └── VersionNotFoundError        no such version, or none yet
    ├── SelectionError            the selection cannot be met (budget, quota, names)
    ├── RefreshStoppedError       a stop was asked for; finished work is kept
    ├── ExportError               the destination cannot be written, or the data changed
    ├── RemoteError               an object store: not reached, throttled, slow, no such address
    │   ├── RemoteNotFoundError         no such bucket, folder or object
    │   ├── RemoteDeniedError           no permission, or no credentials
    │   ├── RemoteChangedError          an object changed while it was read
    │   └── RemoteConflictError         what is there is of another store
    └── QueryError                the SQL is wrong or not allowed

A message says what is wrong, where, what was expected, what was found, and what to do about it.
The command line prints the message alone and exits with `exit_code`; `assert` is for our own bugs.
"""


class GracekitError(Exception):
    """Root of all errors that a user's input, data, disk or checkpoint can cause."""

    exit_code = 1


class RecipeError(GracekitError):
    """The recipe or the command line asks for something that does not exist or does not fit."""

    exit_code = 2


class UsageError(GracekitError):
    """A function or a command was given a value of another kind than it takes."""

    exit_code = 2


class DataError(GracekitError):
    """The user's samples cannot be read or used."""


class CheckpointError(GracekitError):
    """One checkpoint cannot be used; another one may be fine."""


class CheckpointIncompleteError(CheckpointError):
    """The checkpoint is still being written, or was cut off."""


class CheckpointVanishedError(CheckpointError):
    """The trainer deleted the checkpoint while it was being read."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint belongs to another architecture, vocabulary or tokenizer."""


class MeasureError(GracekitError):
    """The model pass cannot go on."""


class ClusterError(MeasureError):
    """The cluster that is to measure cannot be reached, or was lost; a daemon tries again."""


class RefreshStoppedError(GracekitError):
    """A stop was asked for; the finished shards are kept, and the next start goes on from them."""

    exit_code = 130


class StoreError(GracekitError):
    """Something about the store directory."""


class StoreNotFoundError(StoreError):
    """There is no store at the given path."""


class StoreFormatError(StoreError):
    """The directory is not a store, is damaged, or needs a newer gracekit."""


class StoreDataMismatchError(StoreError):
    """The store was made from other data than the recipe names."""


class StoreLockedError(StoreError):
    """Another process is working on the store."""


class StoreWriteError(StoreError):
    """The store could not be written: disk full, no permission, or a failing device."""


class VersionNotFoundError(StoreError):
    """The store has no such version."""


class SelectionError(GracekitError):
    """The selection that was asked for cannot be met."""

    exit_code = 2


class ExportError(GracekitError):
    """An export cannot be written."""


class RemoteError(GracekitError):
    """An object store cannot be used: it is not reached, throttles, or is too slow."""


class RemoteNotFoundError(RemoteError):
    """There is no such bucket, folder or object."""


class RemoteDeniedError(RemoteError):
    """The object store refuses access."""


class RemoteChangedError(RemoteError):
    """An object was replaced while it was being read."""


class RemoteDamagedError(RemoteError):
    """An object has another checksum than it should have."""


class RemoteConflictError(RemoteError):
    """What lies at the address belongs to another store."""


class QueryError(GracekitError):
    """The SQL is wrong, or tries something that is not allowed."""
