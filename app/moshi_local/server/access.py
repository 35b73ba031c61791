"""Who may ask: by host, origin and token. Knows nothing of what is asked for.

A website in the user's own browser can reach a server on this machine. Websockets know no
same-origin rule, and DNS rebinding makes a foreign page's host equal to its origin; so the host
must be one that this server is known by, whatever the origin.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["LOCAL_HOSTS", "Access", "Refused", "is_local"]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_KEY_PROTOCOL = "openai-insecure-api-key."


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is turned away: HTTP status, a code for programs, a sentence for people, and
    the field that is wrong.
    """

    status: int
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one server.

    hosts: names that it is asked by, lower case, without port.
    origins: of other websites that may use it, as browsers send them: "https://example.org".
    token: what every request must have; None: no token is asked for.
    """

    hosts: frozenset[str] = LOCAL_HOSTS
    origins: frozenset[str] = frozenset()
    token: str | None = None

    def host_problem(self, headers: Mapping[str, str], secure: bool) -> Refused | None:
        """What is wrong with where a request was sent to and which page sent it, if anything.

        Programs send no origin; browsers always do where it matters.

        Args:
            headers: of the request.
            secure: it came over TLS.
        """
        host = headers.get("Host", "").lower()
        if _name_of(host) not in self.hosts:
            return Refused(
                403, "forbidden_host", f"this server is not {host or 'nameless'}: see --allow-host"
            )
        origin = headers.get("Origin")
        own = f"{'https' if secure else 'http'}://{host}"
        if origin is not None and origin.lower() != own and origin not in self.origins:
            return Refused(
                403, "forbidden_origin", f"pages of {origin} may not use this server: "
                "see --allow-origin"
            )  # fmt: skip
        return None

    def token_problem(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Refused | None:
        """What is wrong with the key that a request brings, if anything."""
        if self.token is None:
            return None
        wanted = self.token.encode("utf-8", "surrogatepass")  # a header may hold any bytes
        found = [key.encode("utf-8", "surrogatepass") for key in _keys(headers, query)]
        if any(hmac.compare_digest(key, wanted) for key in found):
            return None
        what = "the key is wrong" if found else "a key is needed"
        return Refused(401, "invalid_api_key", f"{what}: the token that the server was started by")


def is_local(host: str) -> bool:
    """Whether a server that listens on this address can be reached from this machine alone."""
    return host in LOCAL_HOSTS or host.startswith("127.")


def _name_of(host: str) -> str:
    """The name in a Host header: "[::1]:8998" → "::1"; empty if it is none."""
    if any(mark in host for mark in "@/\\?#"):
        return ""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _keys(headers: Mapping[str, str], query: Mapping[str, str]) -> list[str]:
    """Every key that a request brings, in any of the ways that clients have."""
    found = []
    kind, _, key = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        found.append(key.strip())
    offered = [p.strip() for p in headers.get("Sec-WebSocket-Protocol", "").split(",")]
    found += [p.removeprefix(_KEY_PROTOCOL) for p in offered if p.startswith(_KEY_PROTOCOL)]
    found += [headers.get("kyutai-api-key", ""), query.get("auth_id", ""), query.get("token", "")]
    return [key for key in found if key]
