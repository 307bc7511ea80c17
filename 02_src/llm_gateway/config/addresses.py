"""What is an HTTP address."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

NO_ADDRESS = "no HTTP address; write it as http://host:port/path or https://host/path"
SPACE = re.compile(r"\s")


def is_address(url: str) -> bool:
    """Whether a URL is an HTTP address with a host and, if any, a possible port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and not SPACE.search(url)
    except ValueError:  # a port that is no number, half an IPv6 address
        return False
