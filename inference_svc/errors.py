"""Every way a request or a command to the inference service can fail.

InferenceError
├── InvalidRequest          a value is out of range, contradictory or malformed   INVALID_ARGUMENT
│   └── PromptTooLong
├── AdapterNotFound         no adapter of this name is resident                   NOT_FOUND
├── SourceNotFound          the files are not where the source says               NOT_FOUND
├── OrderingNotFound        the ordering service knows no such ordering           NOT_FOUND
├── AdapterExists           the name is taken                                     ALREADY_EXISTS
├── AdapterMalformed        a file of the adapter is broken                       INVALID_ARGUMENT
├── SourceChanged           a file changed while it was read                      ABORTED
├── DigestMismatch          the adapter is not the version that was expected      ABORTED
├── AdapterUnfit            it does not fit the base model                        FAILED_PRECONDITION
├── AdapterUnsupported      it asks for something that is not supported           FAILED_PRECONDITION
├── AdapterWrongKind        an X-LoRA where a LoRA is wanted, or the reverse      FAILED_PRECONDITION
├── AdapterInUse            it is in the active default                           FAILED_PRECONDITION
├── OrderingUnfit           it does not fit the base model or its adapters        FAILED_PRECONDITION
├── PathNotAllowed          a path outside the allowed roots                      PERMISSION_DENIED
├── LimitReached            a limit on count, rank, bytes or queue length         RESOURCE_EXHAUSTED
│   ├── QueueFull
│   ├── RequestTooLarge
│   ├── ReaderTooSlow
│   └── WatcherTooSlow
└── Unavailable             try again later or elsewhere                          UNAVAILABLE
    ├── Draining
    ├── EngineStopped
    ├── OrderingServiceUnavailable
    └── HubUnavailable
"""

from __future__ import annotations


class InferenceError(Exception):
    """A failure that the caller is told about: a sentence, a stable reason, and the values that it names."""

    reason = "INFERENCE_ERROR"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidRequest(InferenceError):
    """A value is out of range, contradictory or malformed; `field` is its path in the request."""

    reason = "INVALID_REQUEST"

    def __init__(self, field: str, message: str, **metadata: str) -> None:
        super().__init__(message, field=field, **metadata)
        self.field = field


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for a new token."""

    reason = "PROMPT_TOO_LONG"


class AdapterNotFound(InferenceError):
    """No adapter of this name is resident."""

    reason = "ADAPTER_NOT_FOUND"


class SourceNotFound(InferenceError):
    """The files are not where the source says."""

    reason = "SOURCE_NOT_FOUND"


class OrderingNotFound(InferenceError):
    """The ordering service knows no such ordering or revision."""

    reason = "ORDERING_NOT_FOUND"


class AdapterExists(InferenceError):
    """The name is taken."""

    reason = "ADAPTER_EXISTS"


class AdapterMalformed(InferenceError):
    """A file of the adapter is broken."""

    reason = "ADAPTER_MALFORMED"


class SourceChanged(InferenceError):
    """A file changed while it was read: what would be loaded is neither the old adapter nor the new one."""

    reason = "SOURCE_CHANGED"


class DigestMismatch(InferenceError):
    """The resident adapter is not the version that the caller expected."""

    reason = "DIGEST_MISMATCH"


class AdapterUnfit(InferenceError):
    """The adapter does not fit the base model."""

    reason = "ADAPTER_UNFIT"


class AdapterUnsupported(InferenceError):
    """The adapter asks for something that is not supported."""

    reason = "ADAPTER_UNSUPPORTED"


class AdapterWrongKind(InferenceError):
    """An X-LoRA was named where a LoRA is wanted, or the reverse."""

    reason = "ADAPTER_WRONG_KIND"


class AdapterInUse(InferenceError):
    """The adapter is in the active default."""

    reason = "ADAPTER_IN_USE"


class OrderingUnfit(InferenceError):
    """The ordering does not fit the base model or its adapters."""

    reason = "ORDERING_UNFIT"


class PathNotAllowed(InferenceError):
    """A path outside the allowed roots."""

    reason = "PATH_NOT_ALLOWED"


class LimitReached(InferenceError):
    """A limit on count, rank, bytes or queue length is reached."""

    reason = "LIMIT_REACHED"


class QueueFull(LimitReached):
    """Too many requests are waiting."""

    reason = "QUEUE_FULL"


class RequestTooLarge(LimitReached):
    """The request can never fit in the memory for keys and values."""

    reason = "REQUEST_TOO_LARGE"


class ReaderTooSlow(LimitReached):
    """The client stopped reading its answer."""

    reason = "READER_TOO_SLOW"


class WatcherTooSlow(LimitReached):
    """The client did not read the events of a watch as fast as they came."""

    reason = "WATCHER_TOO_SLOW"


class Unavailable(InferenceError):
    """Try again later or elsewhere."""

    reason = "UNAVAILABLE"


class Draining(Unavailable):
    """The service is shutting down and takes no new requests."""

    reason = "DRAINING"


class EngineStopped(Unavailable):
    """The engine failed; nothing can run until the service is restarted."""

    reason = "ENGINE_STOPPED"


class OrderingServiceUnavailable(Unavailable):
    """The ordering service cannot be reached; what was applied before keeps working."""

    reason = "ORDERING_SERVICE_UNAVAILABLE"


class HubUnavailable(Unavailable):
    """The model hub cannot be reached."""

    reason = "HUB_UNAVAILABLE"
