"""Which proxy the environment names for an address, found once for each pool of connections."""

from __future__ import annotations

from urllib.request import getproxies, proxy_bypass

from yarl import URL

from llm_gateway.errors import ConfigurationError

SCHEMES = frozenset({"http", "https"})


def proxy_of(url: URL) -> URL | None:
    """Return the proxy for `url`, None for none. Raises ConfigurationError for one that does not speak HTTP.

    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in capitals or not, and the system's settings where it has some.
    """
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or not url.host or proxy_bypass(url.host) or proxy_bypass(url.authority.rpartition("@")[2]):
        return None
    proxy = URL(named if "://" in named else f"http://{named}")
    if proxy.scheme not in SCHEMES or not proxy.host:
        raise ConfigurationError(
            f"The environment's proxy for {url.scheme}://{url.host} is one of '{proxy.scheme}', and the lean transport "
            "speaks to HTTP proxies alone; choose another proxy, or transport = 'sdk' for this provider."
        )
    return proxy
