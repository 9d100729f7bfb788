"""The folders that a service may read: a path leads to a place inside one of them, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ordering_svc.domain.problems import shown
from ordering_svc.errors import InvalidValue, PathNotAllowed


class AllowedRoots:
    """Finds paths; links are followed first and judged by where they lead."""

    def __init__(self, roots: Sequence[Path], flag: str) -> None:
        """`flag` is how the service is given such folders."""
        self._roots = tuple(root.resolve() for root in roots)
        self._flag = flag

    def find(self, text: str, field: str) -> Path:
        """The resolved path; a relative one is looked for in every root, and nothing outside them is looked at.

        Raises:
            InvalidValue: it is no path.
            PathNotAllowed: it is outside, or there are no roots.
        """
        if "\0" in text:
            raise InvalidValue(field, f"{shown(text)!r} is not a path: it holds a NUL character")
        if not self._roots:
            message = f"{shown(text)!r} cannot be read: the service was started without {self._flag}"
            raise PathNotAllowed(message, path=text)
        candidates = []
        for root in self._roots:
            try:
                candidates.append((root / text).resolve())
            except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, half a surrogate pair
                raise InvalidValue(field, f"{shown(text)!r} is not a path: {shown(str(error))}") from None
        allowed = [path for path in candidates if self.contains(path)]
        if not allowed:
            raise PathNotAllowed(f"{shown(text)!r} is outside the folders of {self._flag}", path=text)
        return next((path for path in allowed if _exists(path)), allowed[0])

    def contains(self, path: Path) -> bool:
        """A resolved path is inside."""
        return any(path.is_relative_to(root) for root in self._roots)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # for instance a name that is too long
        return False
