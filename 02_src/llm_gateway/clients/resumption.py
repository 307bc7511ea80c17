"""TLS sessions that are taken up again: a new connection to a known host costs half a handshake, and no certificates.

asyncio begins every connection anew. A server's ticket comes after the handshake, so it is looked for when the next
connection is made.
"""

from __future__ import annotations

import ssl


class Sessions:
    """The last TLS session of each host, for the connections of one context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._wrap = context.wrap_bio
        self._last: dict[str | bytes | None, ssl.SSLObject] = {}
        self._sessions: dict[str | bytes | None, ssl.SSLSession] = {}

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - the signature of ssl.SSLContext
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Do what the context does, with the session of the host's last connection if none is given."""
        last = self._last.get(server_hostname)
        if last is not None and last.session is not None and last.session.has_ticket:
            self._sessions[server_hostname] = last.session
        known = session or self._sessions.get(server_hostname)
        made = self._wrap(incoming, outgoing, server_side, server_hostname, known)
        self._last[server_hostname] = made
        return made


def resuming(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context, which from now on resumes; one of another make (truststore's) is left as it is."""
    if type(context) is ssl.SSLContext:
        context.wrap_bio = Sessions(context).wrap_bio  # type: ignore[method-assign]  # what asyncio calls
    return context
