"""Every way a request or a command to the ordering service can fail.

OrderingServiceError
├── InvalidRequest              a value is malformed; names every field           INVALID_ARGUMENT
│   ├── InvalidValue
│   ├── InvalidName
│   ├── InvalidOrdering         the document has problems
│   ├── InvalidPageToken
│   ├── ModelConfigInvalid      the config cannot be read, or lacks something
│   ├── ArchitectureUnknown
│   ├── TargetModulesUnmatched
│   ├── NoModuleSelected
│   ├── TargetModuleUnsupported
│   ├── PatternInvalid          a regular expression that cannot be compiled
│   ├── PatternTooCostly        a regular expression that takes too long
│   └── TooManyLayers
├── NotFound                                                                      NOT_FOUND
│   ├── OrderingNotFound
│   ├── RevisionNotFound
│   ├── TagNotFound
│   └── ModelNotFound
├── OrderingExists              the id is taken, if only by a deleted one         ALREADY_EXISTS
├── EtagMismatch                the ordering has changed since it was read        ABORTED
├── PathNotAllowed              a path outside the allowed roots                  PERMISSION_DENIED
├── OrderingDeleted             a deleted ordering cannot take a revision         FAILED_PRECONDITION
├── OrderingNotDeleted          only a deleted one can be brought back or purged  FAILED_PRECONDITION
├── TooManyTags                 the ordering has as many as it may                FAILED_PRECONDITION
├── DatabaseNotWritable         read-only, or not there                           FAILED_PRECONDITION
│   └── DatabaseUnreadable      not a database, or damaged
├── DatabaseFull                the disk or a quota is full                       RESOURCE_EXHAUSTED
├── Unavailable                 try again later                                   UNAVAILABLE
│   ├── DatabaseBusy
│   ├── DatabaseUnreachable
│   └── HubUnavailable
└── CannotStart                 the service does not come up                      exit status 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field of a request."""

    field: str
    description: str
    reason: str


class OrderingServiceError(Exception):
    """A failure that the caller is told about: a sentence, a stable reason, and the values that it names."""

    reason = "ORDERING_SERVICE_ERROR"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidRequest(OrderingServiceError):
    """Values of the request are malformed; at least one violation."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation], message: str = "", **metadata: str) -> None:
        first = violations[0]
        rest = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(message or f"{first.field or 'request'}: {first.description}{rest}", **metadata)
        self.violations = tuple(violations)


class _OneField(InvalidRequest):
    """One value of the request is malformed."""

    def __init__(self, field: str, description: str, **metadata: str) -> None:
        super().__init__([Violation(field, description, self.reason)], field=field, **metadata)


class InvalidValue(_OneField):
    """A value is out of range, contradictory or malformed."""

    reason = "INVALID_REQUEST"


class InvalidName(_OneField):
    """A resource name or an id is malformed."""

    reason = "INVALID_NAME"


class InvalidPageToken(_OneField):
    """The page token is not one that this service made for these arguments."""

    reason = "INVALID_PAGE_TOKEN"


class InvalidOrdering(InvalidRequest):
    """The document has problems: one violation each."""

    reason = "INVALID_ORDERING"

    def __init__(self, violations: Sequence[Violation]) -> None:
        count = len(violations)
        noun = "problem" if count == 1 else "problems"
        first = violations[0].description
        message = f"the ordering has {count} {noun}: {first}" + (" ValidateOrdering lists all." if count > 1 else "")
        super().__init__(violations, message, num_problems=str(count))


class ModelConfigInvalid(_OneField):
    """The config of the model cannot be read, or lacks something."""

    reason = "MODEL_CONFIG_INVALID"


class ArchitectureUnknown(_OneField):
    """The model has an architecture that there is no table for."""

    reason = "ARCHITECTURE_UNKNOWN"


class TargetModulesUnmatched(InvalidRequest):
    """Target modules that match nothing; `unmatched` pairs their place in the request with their name."""

    reason = "TARGET_MODULE_UNMATCHED"

    def __init__(
        self, unmatched: Sequence[tuple[int, str]], architecture: str, available: Sequence[str], where: str = ""
    ) -> None:
        there = ", ".join(available)
        violations = [
            Violation(
                f"target_modules[{index}]",
                f"{target!r} matches no module of a {architecture} model{where}; there are {there}",
                self.reason,
            )
            for index, target in unmatched
        ]
        super().__init__(violations, target_module=unmatched[0][1], architecture=architecture, available=there)


class NoModuleSelected(_OneField):
    """No module is left to carry an adapter."""

    reason = "TARGET_MODULE_UNMATCHED"

    def __init__(self, description: str) -> None:
        super().__init__("target_modules", description)


class TargetModuleUnsupported(_OneField):
    """Modules are selected that no adapter can sit on, for instance norms or whole blocks."""

    reason = "TARGET_MODULE_UNSUPPORTED"

    def __init__(self, paths: Sequence[str], architecture: str, available: Sequence[str]) -> None:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        super().__init__(
            "target_modules",
            f"selects {paths[0]}{more}, which cannot carry an adapter in a {architecture} model; what can is"
            f" {', '.join(available)}",
            module=paths[0],
        )


class PatternInvalid(_OneField):
    """A regular expression that cannot be compiled; `position` is where, if it is known."""

    reason = "PATTERN_INVALID"

    def __init__(self, field: str, pattern: str, fault: str, position: int | None) -> None:
        where = f" at position {position}" if position is not None else ""
        super().__init__(
            field,
            f"{pattern!r} is not a regular expression: {fault}{where}",
            **({} if position is None else {"position": str(position)}),
        )


class PatternTooCostly(_OneField):
    """Regular expressions that take too long, or too much memory."""

    reason = "PATTERN_TOO_COSTLY"


class TooManyLayers(_OneField):
    """More modules match than an ordering can name."""

    reason = "TOO_MANY_LAYERS"

    def __init__(self, count: int, limit: int) -> None:
        super().__init__("target_modules", f"{count} modules match, an ordering has room for {limit}: name fewer")


class NotFound(OrderingServiceError):
    """Something that the request names is not there; `resource` is its name."""

    reason = "NOT_FOUND"
    resource_type = "resource"

    def __init__(self, message: str, resource: str, **metadata: str) -> None:
        super().__init__(message, resource=resource, **metadata)
        self.resource = resource


class OrderingNotFound(NotFound):
    """There is no such ordering, or it was deleted."""

    reason = "ORDERING_NOT_FOUND"
    resource_type = "loramux.ordering.v1.Ordering"


class RevisionNotFound(NotFound):
    """The ordering has no such revision."""

    reason = "REVISION_NOT_FOUND"
    resource_type = "loramux.ordering.v1.Ordering"


class TagNotFound(NotFound):
    """The ordering has no such tag."""

    reason = "TAG_NOT_FOUND"
    resource_type = "loramux.ordering.v1.Ordering"

    def __init__(self, ordering_id: str, tag: str) -> None:
        super().__init__(f"orderings/{ordering_id} has no tag {tag!r}", f"orderings/{ordering_id}@{tag}", tag=tag)


class ModelNotFound(NotFound):
    """There is no such model, or it has no config."""

    reason = "MODEL_NOT_FOUND"
    resource_type = "model"


class OrderingExists(OrderingServiceError):
    """The id is taken."""

    reason = "ORDERING_EXISTS"
    resource_type = "loramux.ordering.v1.Ordering"

    def __init__(self, ordering_id: str, *, is_deleted: bool) -> None:
        by_whom = "a deleted ordering: undelete or purge it, or" if is_deleted else "another ordering:"
        super().__init__(
            f"the id {ordering_id!r} is taken by {by_whom} choose another id",
            ordering_id=ordering_id,
            deleted="true" if is_deleted else "false",
        )
        self.resource = f"orderings/{ordering_id}"
        self.is_deleted = is_deleted


class EtagMismatch(OrderingServiceError):
    """The ordering has changed since the caller read it."""

    reason = "ETAG_MISMATCH"

    def __init__(self, ordering_id: str, given: str, current: str) -> None:
        super().__init__(
            f"orderings/{ordering_id} has changed: its etag is {current}, not {given}; read it again, then decide",
            name=f"orderings/{ordering_id}",
            etag=given,
            current_etag=current,
        )
        self.current_etag = current


class PathNotAllowed(OrderingServiceError):
    """A path outside the allowed roots."""

    reason = "PATH_NOT_ALLOWED"


class OrderingDeleted(OrderingServiceError):
    """A deleted ordering cannot take a new revision."""

    reason = "ORDERING_DELETED"

    def __init__(self, ordering_id: str) -> None:
        super().__init__(
            f"orderings/{ordering_id} was deleted and cannot take a new revision: undelete it, or choose another id",
            name=f"orderings/{ordering_id}",
        )


class OrderingNotDeleted(OrderingServiceError):
    """Only a deleted ordering can be brought back or purged."""

    reason = "ORDERING_NOT_DELETED"

    def __init__(self, ordering_id: str) -> None:
        super().__init__(
            f"orderings/{ordering_id} is not deleted: only a deleted ordering can be undeleted or purged",
            name=f"orderings/{ordering_id}",
        )


class TooManyTags(OrderingServiceError):
    """The ordering has as many tags as it may have."""

    reason = "TOO_MANY_TAGS"

    def __init__(self, ordering_id: str, limit: int) -> None:
        super().__init__(
            f"orderings/{ordering_id} has {limit} tags already: take one away first",
            name=f"orderings/{ordering_id}",
            limit=str(limit),
        )


class DatabaseNotWritable(OrderingServiceError):
    """The database is read-only, or cannot be opened."""

    reason = "DATABASE_NOT_WRITABLE"


class DatabaseUnreadable(DatabaseNotWritable):
    """The file is no database of this service, or is damaged."""

    reason = "DATABASE_UNREADABLE"


class DatabaseFull(OrderingServiceError):
    """The disk or a quota is full."""

    reason = "DATABASE_FULL"


class Unavailable(OrderingServiceError):
    """Try again later."""

    reason = "UNAVAILABLE"


class DatabaseBusy(Unavailable):
    """Another process holds the database for longer than we wait."""

    reason = "DATABASE_BUSY"


class DatabaseUnreachable(Unavailable):
    """The database server does not answer."""

    reason = "DATABASE_UNREACHABLE"


class HubUnavailable(Unavailable):
    """The hub does not answer, or is switched off."""

    reason = "HUB_UNAVAILABLE"


class CannotStart(OrderingServiceError):
    """The service does not come up: a setting is wrong, the address is taken, the database is unusable."""

    reason = "CANNOT_START"
