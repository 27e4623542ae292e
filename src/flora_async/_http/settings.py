"""HTTPSettings: how a client sends requests, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from ssl import SSLContext
from typing import TYPE_CHECKING

from msgspec import Struct

from flora_async import errors
from flora_async._http import urls
from flora_async._http.auth import APIKey
from flora_async._http.rate_limit import RateLimitPolicy
from flora_async._http.requests import check_headers
from flora_async._http.retry import RetryPolicy
from flora_async._http.urls import BaseURL
from flora_async._validation import check_count, check_flag, check_seconds, check_ssl, check_text, resolve_setting

if TYPE_CHECKING:
    import aiohttp

DEFAULT_BASE_URL = "https://app.flora.ai/api/v1"


class HTTPSettings(Struct, frozen=True, kw_only=True):
    """How a client sends requests. ``Flora`` documents the fields."""

    key: APIKey
    origin: BaseURL
    timeout: float
    max_retries: int
    session: aiohttp.ClientSession | None
    proxy: str | None
    ssl: SSLContext | None
    default_headers: Mapping[str, str]
    max_response_bytes: int
    max_download_bytes: int
    allow_private_hosts: bool
    retry: RetryPolicy
    rate_limit: RateLimitPolicy

    def __repr__(self) -> str:
        return f"HTTPSettings({self.origin.url!r})"  # the proxy and the headers can have secrets

    def may_connect(self, address: str) -> bool:
        """Return whether outputs may be downloaded from an IP address."""
        if self.proxy is not None or self.allow_private_hosts or urls.is_public(address):
            return True  # The client connects to the proxy alone. The proxy decides on addresses.
        return self.origin.loopback and urls.is_loopback(address)

    def media_url(
        self, url: str, *, label: str = "the output's url", error: type[errors.FloraError] = errors.DownloadError
    ) -> str:
        """Return the URL of a file, or raise *error*, which calls it by its *label*, if it is not allowed."""
        return urls.media_url(self.origin, url, allow_private_hosts=self.allow_private_hosts, label=label, error=error)


def check_settings(
    *,
    key: APIKey,
    base_url: str | None,
    timeout: float,
    max_retries: int,
    session: aiohttp.ClientSession | None,
    proxy: str | None,
    ssl: SSLContext | None,
    default_headers: Mapping[str, str] | None,
    max_response_bytes: int,
    max_download_bytes: int,
    allow_insecure: bool,
    allow_private_hosts: bool,
    retry: RetryPolicy,
    rate_limit: RateLimitPolicy,
) -> HTTPSettings:
    """Check the arguments of a client and return its settings. Raise ConfigurationError if one is invalid."""
    check_flag("allow_insecure", allow_insecure)
    origin = urls.parse_base_url(
        resolve_setting("base_url", base_url, "FLORA_BASE_URL") or DEFAULT_BASE_URL, allow_insecure=allow_insecure
    )
    if proxy is not None:
        urls.check_proxy(origin, check_text("proxy", proxy), allow_insecure=allow_insecure)
    return HTTPSettings(
        key=key,
        origin=origin,
        timeout=check_seconds("timeout", timeout),
        max_retries=check_count("max_retries", max_retries, least=0),
        session=session,
        proxy=proxy,
        ssl=None if ssl is None else check_ssl(ssl),
        default_headers=check_headers(default_headers or {}),
        max_response_bytes=check_count("max_response_bytes", max_response_bytes, least=1),
        max_download_bytes=check_count("max_download_bytes", max_download_bytes, least=1),
        allow_private_hosts=check_flag("allow_private_hosts", allow_private_hosts),
        retry=retry,
        rate_limit=rate_limit,
    )
