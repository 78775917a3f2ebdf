"""The few kinds of error that callers tell apart."""


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback and exits with code 2."""


class StoreError(OSError):
    """An object store failed after retries; the message names the store, the key and what was tried."""


class ObjectMissing(StoreError):  # noqa: N818 - says what is so, like the store's own 404
    """There is no such object in the store."""


class ObjectDamaged(StoreError):  # noqa: N818 - see ObjectMissing
    """The store answers, but the bytes are not those that were written; asking again does not help."""


class DecodeError(RuntimeError):
    """A clip cannot be decoded; the message names the data set, shard and key."""


class ReaderError(RuntimeError):
    """Reader processes cannot be kept alive, or one failed in a way that no sample explains."""
