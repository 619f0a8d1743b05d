"""The one error vocabulary. A bad rollout is data (a stop reason in an episode), never one of these.

RatchetError
├── UserError                 exit code 2: something asked for is wrong; says what was asked, what there is, what to do
│   ├── ConfigError           a configuration key, value, or file
│   ├── RunFolderError        a run that is missing, occupied, unwritable, or not ours
│   ├── PlacementError        the cluster cannot hold what the configuration asks for
│   └── ClusterError          no cluster at the address, or it refuses our token
├── StoreError
│   ├── StoreIdentityError    the store folder is missing, or is another store than the run's manifest names
│   ├── StoreBusyError        another live process owns the store
│   ├── FencedError           the caller's epoch is over: a newer owner, learner or producer took its place
│   ├── StoreFullError        the disk is full: the append was refused, nothing was written; reads go on
│   ├── StoreStoppedError     an fsync failed or the store was closed: the owner takes nothing more
│   ├── StoreUnreachableError no answer from the owner in time: what was asked may have been done; ask again
│   │   └── NotFollowedError  a shard has not heard yet what was decided about what it is asked: ask again
│   ├── FormatError           bytes of a format version that this code does not know
│   └── RotError              a damaged frame below the durable watermark, in strict mode
├── EngineError               the inference engine failed or did not answer in time
│   └── PushRefusedError      the parity guard refused the weights twice
├── PromptTooLongError        a prompt over the token limit, where the configuration says refuse: ends that episode
├── LearnerError              a step could not be computed
│   └── ReplayMismatchError   a step that was run again gave another hash on an equal fingerprint
└── ActorDiedError            a process of the run died; names it and the command that goes on
"""

import errno

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # EFBIG: RLIMIT_FSIZE, or the file system's limit


class RatchetError(Exception):
    """Root of every error that Ratchet raises on purpose."""


class UserError(RatchetError):
    """Bad input. `asked`, `found`, `todo` are the three sentences that the command line prints."""

    def __init__(self, asked: str, found: str = "", todo: str = "") -> None:
        self.asked, self.found, self.todo = asked, found, todo
        super().__init__("\n".join(part for part in (asked, found, todo) if part))


class ConfigError(UserError):
    """A configuration key, value, or file is wrong."""


class RunFolderError(UserError):
    """A run folder is missing, occupied, unwritable, or not one of ours."""


class PlacementError(UserError):
    """The cluster cannot hold what the configuration asks for."""


class ClusterError(UserError):
    """There is no cluster at the address, or it refuses the token."""


class StoreError(RatchetError):
    """The experience store refused or failed."""


class StoreIdentityError(StoreError):
    """The store is missing, or is not the one that the run's manifest names."""


class StoreBusyError(StoreError):
    """Another live process owns the store."""


class FencedError(StoreError):
    """The caller's epoch is over."""


class StoreFullError(StoreError):
    """The disk is full. Nothing was written; reads go on."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space. Libraries that wrap the system's error keep its number in the text."""
    number = error.errno if isinstance(error, OSError) else None
    return number in FULL_DISK or any(f"os error {full})" in str(error) for full in FULL_DISK)


class StoreStoppedError(StoreError):
    """The owner takes nothing more: an fsync failed, or the store was closed."""


class StoreUnreachableError(StoreError):
    """The owner did not answer in time. What was asked may have been done; every call may be retried."""


class NotFollowedError(StoreUnreachableError):
    """A shard has not heard all that was decided about what it is asked: ask again."""


class FormatError(StoreError):
    """Bytes of a format version that this code does not know."""


class RotError(StoreError):
    """A damaged frame at or below the durable watermark (strict mode)."""


class EngineError(RatchetError):
    """The inference engine failed or did not answer in time."""


class PushRefusedError(EngineError):
    """The parity guard refused the pushed weights twice."""


class PromptTooLongError(RatchetError):
    """A prompt has more tokens than the configuration allows, and may not be truncated."""


class LearnerError(RatchetError):
    """A learner step could not be computed."""


class ReplayMismatchError(LearnerError):
    """A step that was run again on an equal fingerprint gave another hash."""


class ActorDiedError(RatchetError):
    """A process of the run died."""
