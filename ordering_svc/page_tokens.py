"""Page tokens: where the next page starts, signed so that only this service can have said it."""

from __future__ import annotations

import base64
import hashlib
import hmac

from ordering_svc.errors import InvalidPageToken

MAC_BYTES = 16


class PageTokens:
    """Signs and reads tokens with one key; a token is good for the method and the arguments it was made for."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, scope: str, position: str) -> str:
        """A URL-safe token for the position after which the next page of `scope` starts."""
        raw = self._mac(scope, position) + position.encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    def read(self, scope: str, token: str) -> str:
        """The position in a token.

        Raises:
            InvalidPageToken: it was not made here, for another method or other arguments, or was changed.
        """
        try:
            raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
            position = raw[MAC_BYTES:].decode("utf-8")
        except ValueError:  # also what base64 and Unicode errors are
            raise self._foreign() from None
        # Compared whole, so that a second spelling of the same bytes is no token either.
        if not hmac.compare_digest(self.sign(scope, position), token):
            raise self._foreign()
        return position

    def _mac(self, scope: str, position: str) -> bytes:
        return hmac.new(self._key, f"{scope}\0{position}".encode(), hashlib.sha256).digest()[:MAC_BYTES]

    @staticmethod
    def _foreign() -> InvalidPageToken:
        return InvalidPageToken(
            "page_token", "this service did not make the page token for these arguments: start from the first page"
        )
