"""Pure: URL policy: which URLs may be requested, and which of them with the API key.

URLs are matched whole against narrow patterns, never taken apart by one parser and sent by another.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote

from msgspec import Struct

from flora_async import errors

_HOST_AND_PORT = r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
_HOST = r"(?P<scheme>https?)://" + _HOST_AND_PORT
_ABSOLUTE = "(?i)" + _HOST + r"(?P<rest>[/?#][^\s\\\x00-\x1f\x7f]*)?"
_DEFAULT_PORT = {"http": 80, "https": 443}
_ENCODED_QUERY = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"

_UNENCODED = r"[^\x00-\x1f\x21-\x7f]+"

_PROXY = r"(?i)https?://(?:[^\s/@\x00-\x1f\x7f]*@)?" + _HOST_AND_PORT + "/?"
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_GLOBAL = (ipaddress.IPv6Network("3fff::/20"), ipaddress.IPv4Network("192.88.99.0/24"))
"""Documentation addresses and the abandoned relay of 6to4, which Python does not know as special in every version."""
_LOCAL_NAME = r"(?i)(?:.*\.)?(?:localhost|[0-9]+|0x[0-9a-f]*)\.?"
"""This machine's names, and IPv4 addresses in the notations that only resolvers read: 127.1, 0x7f.1, 2130706433."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_PATH = r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)"
_BASE_URL = "(?i)" + _HOST + f"(?P<path>{_PATH}*)"

ENCODED_PATH = _PATH + "+"
"""A path as it may stand on the wire (RFC 3986, section 3.3)."""


class BaseURL(Struct, frozen=True, gc=False):
    """The parsed base URL. Only its origin receives the API key."""

    scheme: str
    host: str
    port: int
    path: str
    url: str
    """The base URL, without a slash at its end."""

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether *host*, as written in a URL, can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_base_url(text: str, *, allow_insecure: bool = False) -> BaseURL:
    """Parse a base URL. http is accepted only on this machine, or with *allow_insecure*."""
    match = re.fullmatch(_BASE_URL, text)
    if match is None:
        raise errors.ConfigurationError(
            "base_url (or FLORA_BASE_URL) must be like https://app.flora.ai/api/v1: http or https, without user name, "
            "query or fragment, its path percent-encoded"
        )
    scheme, host = match["scheme"].lower(), match["host"].lower()
    if scheme == "http" and not is_loopback(host) and not allow_insecure:
        raise errors.ConfigurationError(
            f"base_url (or FLORA_BASE_URL) must be https: http shows the API key to every network up to {host}. "
            "allow_insecure=True permits it"
        )
    port = int(match["port"] or _DEFAULT_PORT[scheme])
    if not 0 < port < 65536 or has_dot_segments(match["path"]):
        raise errors.ConfigurationError("base_url (or FLORA_BASE_URL) must have a port below 65536 and no dot segments")
    shown_port = f":{port}" if match["port"] and port != _DEFAULT_PORT[scheme] else ""
    path = match["path"].rstrip("/")
    return BaseURL(scheme, host, port, path, f"{scheme}://{host}{shown_port}{path}")


def has_dot_segments(path: str) -> bool:
    """Return whether *path* has ``.`` or ``..`` segments."""
    return any(segment in (".", "..") for segment in path.lower().replace("%2e", ".").split("/"))


def poll_target(origin: BaseURL, poll_url: str) -> str | None:
    """Return the URL to request for a ``poll_url``; ``None`` if it is not below the base URL.

    Only its path and query are used, after the configured base URL. So the key cannot reach another host, however a
    parser reads the rest.
    """
    match = re.fullmatch(_ABSOLUTE, poll_url)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    port = int(match["port"] or _DEFAULT_PORT[scheme])
    if (scheme, match["host"].lower(), port) != (origin.scheme, origin.host, origin.port):
        return None
    path, _, query = (match["rest"] or "").partition("?")
    if not path.startswith(origin.path + "/"):
        return None
    below = path[len(origin.path) :]
    if not re.fullmatch(ENCODED_PATH, below) or has_dot_segments(below) or "%2f" in below.lower():
        return None
    return origin.url + below + (f"?{query}" if query else "") if re.fullmatch(_ENCODED_QUERY, query) else None


def check_proxy(origin: BaseURL, proxy: str, *, allow_insecure: bool) -> str:
    """Check a proxy URL. A proxy can read http requests with their key, but not https requests."""
    match = re.fullmatch(_PROXY, proxy)
    if match is None:
        raise errors.ConfigurationError("proxy must be an http:// or https:// URL, like http://proxy.example:3128")
    if origin.scheme == "http" and not is_loopback(match["host"]) and not allow_insecure:
        raise errors.ConfigurationError(
            "proxy would read the key, as base_url is http: use https, or allow_insecure=True to permit it"
        )
    return proxy


def media_url(
    origin: BaseURL,
    url: str,
    *,
    allow_private_hosts: bool = False,
    label: str = "the output's url",
    error: type[errors.FloraError] = errors.DownloadError,
) -> str:
    """Check that a file may be exchanged with *url*: https, its usual port, and no address that is not public.

    The address of a name is checked on connection (:func:`is_public`). If the API is on this machine, files may be too,
    also over http. Return the encoded URL: spaces and non-ASCII characters are percent-encoded. Every other byte is
    kept, because hosts sign paths and queries. Raise *error*, which calls the URL by its *label*.
    """
    try:
        encoded = re.sub(_UNENCODED, lambda match: quote(match[0].encode(errors="surrogateescape")), url.strip(" "))
    except UnicodeEncodeError:
        raise error(f"{label} is no text: {_redact_query(url)}") from None
    match = re.fullmatch(_ABSOLUTE, encoded)
    if match is None:
        raise error(f"{label} is no plain https URL: {_redact_query(encoded)}")
    host, port = match["host"], match["port"]
    if origin.loopback and is_loopback(host):
        return encoded
    if match["scheme"].lower() != "https":
        raise error(f"{label} is not https: {_redact_query(encoded)}")
    if allow_private_hosts:
        return encoded
    if is_loopback(host) or not is_public(host.strip("[]")):
        raise error(
            f"{label} leads into a private network, or to this machine: {_redact_query(encoded)} "
            "(allow_private_hosts=True permits it)"
        )
    if port is not None and int(port) != _DEFAULT_PORT["https"]:
        raise error(f"{label} has a port of its own: {_redact_query(encoded)}")
    return encoded


def is_public(host: str) -> bool:
    """Return whether an address is on the public internet. A name counts as public until it is resolved.

    IPv4 addresses inside of IPv6 ones (mapped, 6to4, NAT64) are checked as IPv4 addresses. No IPv6 address outside of
    2000::/3 is public: those are site-local, IPv4-compatible, IPv4-translated or reserved.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return not re.fullmatch(_LOCAL_NAME, host)
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            address = embedded
        elif address not in _GLOBAL_UNICAST or address.teredo is not None:
            return False
    if any(address in network for network in _NOT_GLOBAL):
        return False
    return address.is_global and not address.is_multicast


def _redact_query(url: str) -> str:
    # Queries of signed URLs are credentials.
    return repr(re.split(r"[?#]", url)[0][:200])


def is_https_or_loopback(origin: BaseURL, url: str) -> bool:
    """Return whether *url* is https, or http on this machine if the API is on it too."""
    match = re.fullmatch(_ABSOLUTE, url)
    if match is None:
        return False
    return match["scheme"].lower() == "https" or (origin.loopback and is_loopback(match["host"]))


def origin_of(url: str) -> str | None:
    """Return the scheme and host of an absolute *url*; ``None`` if it is not absolute."""
    match = re.fullmatch(_ABSOLUTE, url)
    return f"{match['scheme']}://{match['host']}" if match else None
