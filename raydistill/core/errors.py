"""One error tree; each error is also a built-in kind, so callers may catch either."""


class RaydistillError(Exception):
    """Any failure that raydistill explains: what is wrong, where, and what to do next."""


class ConfigError(RaydistillError, ValueError):
    """A configuration is wrong; nothing was started and nothing was written (exit status 2)."""


class NotFoundError(RaydistillError, LookupError):
    """A model, version, alias or file does not exist; the message names the known ones."""


class ConflictError(RaydistillError, RuntimeError):
    """Somebody else moved the object first, or it holds another fingerprint."""


class StorageError(RaydistillError, OSError):
    """An object store or a folder did not do what was asked."""


class UnavailableError(StorageError):
    """An object store does not answer, or says that it cannot now; later it may."""


class DatasetError(RaydistillError, ValueError):
    """A dataset is unfinished, unreadable, or not what its manifest says."""


class QualityError(RaydistillError, ValueError):
    """Too few of the teacher's answers can be used."""


class BudgetError(RaydistillError, RuntimeError):
    """What was asked so far has cost as much as it may."""


class VerificationError(RaydistillError, ValueError):
    """A version failed a check (digest, base model, shape, weights, template, probe) and is not served."""


class RefusedError(VerificationError):
    """A replica refused a version; `check` names which of its checks failed."""

    def __init__(self, message: str, check: str = "") -> None:
        """Take the reason and the check: record, digests, checks, load or probe."""
        super().__init__(message)
        self.check = check

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[str, str]]:
        """Return how to make it anew in another process."""
        return type(self), (str(self.args[0]), self.check)


class CapacityError(RaydistillError, RuntimeError):
    """The cluster can never have the CPUs, GPUs or memory that were asked for."""


class ServiceError(RaydistillError, RuntimeError):
    """A serving application answered with an error, or did not answer in time."""


class EngineLostError(ServiceError):
    """A replica's engine is gone: the request was not answered, and another replica can answer it."""


class EngineGoneError(EngineLostError):
    """It was gone before the request came, which therefore has no part in that."""


class TrainingError(RaydistillError, RuntimeError):
    """Training cannot go on: a NaN loss, too few rows, an unusable checkpoint."""


class DivergenceError(TrainingError):
    """A loss or a gradient is no finite number any more: the same steps would end there again."""


# What a command ends with status 2 for: its input is wrong. Any other failure is status 1.
BAD_INPUT = (ConfigError, NotFoundError, DatasetError, CapacityError, ConflictError)
