"""Where a request may go, and so who may see the key."""

import pytest

from flora_async import ConfigurationError, DownloadError
from flora_async._http.urls import (
    check_proxy,
    is_https_or_loopback,
    is_public,
    media_url,
    origin_of,
    parse_base_url,
    poll_target,
)

FLORA = parse_base_url("https://app.flora.ai/api/v1")
LOCAL = parse_base_url("http://127.0.0.1:8080/api/v1")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://app.flora.ai/api/v1", "https://app.flora.ai/api/v1"),
        ("https://app.flora.ai/api/v1/", "https://app.flora.ai/api/v1"),
        ("https://app.flora.ai/api/v1//", "https://app.flora.ai/api/v1"),
        ("HTTPS://App.Flora.AI:443/api/v1", "https://app.flora.ai/api/v1"),
        ("https://app.flora.ai:8443", "https://app.flora.ai:8443"),
        ("http://localhost:8080/api/v1", "http://localhost:8080/api/v1"),
        ("http://127.0.0.1/api/v1", "http://127.0.0.1/api/v1"),
        ("http://127.9.9.9:81", "http://127.9.9.9:81"),
        ("http://[::1]:8080/api/v1", "http://[::1]:8080/api/v1"),
        ("https://app.flora.ai/api/v1;rev=2/", "https://app.flora.ai/api/v1;rev=2"),
        ("https://app.flora.ai/t=a,b@c:1/!$&'()*+", "https://app.flora.ai/t=a,b@c:1/!$&'()*+"),
        ("https://app.flora.ai/%61pi/a%2Fb%20c", "https://app.flora.ai/%61pi/a%2Fb%20c"),
        ("https://relay.example/https://app.flora.ai/api/v1", "https://relay.example/https://app.flora.ai/api/v1"),
        ("https://app.flora.ai/api//v1", "https://app.flora.ai/api//v1"),
    ],
)
def test_base_urls(text: str, url: str) -> None:
    """Https anywhere, http on this machine; slashes at the end do not matter."""
    assert parse_base_url(text).url == url


@pytest.mark.parametrize(
    "text",
    [
        "app.flora.ai/api/v1",
        "http://app.flora.ai/api/v1",
        "http://127.0.0.1.evil.example/",
        "http://localhost.evil.example/",
        "http://10.0.0.1/",
        "ftp://app.flora.ai",
        "https://user:pw@app.flora.ai/api/v1",
        "https://app.flora.ai@evil.example/api/v1",
        "https://app.flora.ai/api/v1?x=1",
        "https://app.flora.ai/api/v1?",
        "https://app.flora.ai/api/v1#x",
        "https://app.flora.ai/api/../v1",
        "https://app.flora.ai/api/./v1",
        "https://app.flora.ai/api/%2E%2e/v1",
        "https://app.flora.ai/api/%zz",
        "https://app.flora.ai/api/%2",
        "https://app.flora.ai/ä",
        "https://app.flora.ai/a|b",
        "https://app.flora.ai:0/",
        "https://app.flora.ai:99999/",
        "https://app.flora.ai:x/",
        "https://app.flora.ai\\@evil.example/",
        "https://app.flora.ai/api v1",
        "https://app.flora.ai/api\n",
        "https://",
        "https:///api",
    ],
)
def test_refused_base_urls(text: str) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigurationError, match="base_url"):
        parse_base_url(text)


@pytest.mark.parametrize(
    ("poll_url", "target"),
    [
        ("https://app.flora.ai/api/v1/runs/run_1", "https://app.flora.ai/api/v1/runs/run_1"),
        ("https://APP.flora.ai:443/api/v1/runs/run_1", "https://app.flora.ai/api/v1/runs/run_1"),
        ("https://app.flora.ai/api/v1/poll/7?token=a%2Fb", "https://app.flora.ai/api/v1/poll/7?token=a%2Fb"),
    ],
)
def test_poll_urls_at_home(poll_url: str, target: str) -> None:
    """On our own origin and below its base path a poll_url is asked as it stands."""
    assert poll_target(FLORA, poll_url) == target


@pytest.mark.parametrize(
    "poll_url",
    [
        "",
        "https://example.com",
        "https://example.com/api/v1/runs/run_1",
        "http://app.flora.ai/api/v1/runs/run_1",
        "http://app.flora.ai:443/api/v1/runs/run_1",
        "https://app.flora.ai:8443/api/v1/runs/run_1",
        "https://app.flora.ai",
        "https://app.flora.ai/",
        "https://app.flora.ai/api/v1",
        "https://app.flora.ai/api/v10/runs/run_1",
        "https://app.flora.ai/api/v1evil/runs",
        "https://app.flora.ai/api/v1/../../admin",
        "https://app.flora.ai/api/v1/%2e%2e/admin",
        "https://app.flora.ai/api/v1/.%2E/admin",
        "https://app.flora.ai/api/v1/runs%2f..%2fadmin",
        "https://app.flora.ai/api/v1/runs/run_1#frag",
        "https://app.flora.ai/api/v1/runs/run 1",
        "https://app.flora.ai/api/v1/runs\\..\\admin",
        "https://app.flora.ai/api/v1/runs/%zz",
        "https://app.flora.ai/api/v1/runs/run_1?a=\u00e4",
        "https://app.flora.ai.evil.example/api/v1/runs/run_1",
        "https://evil.example/https://app.flora.ai/api/v1/runs/run_1",
        "https://app.flora.ai@evil.example/api/v1/runs/run_1",
        "https://evil.example@app.flora.ai/api/v1/runs/run_1",
        "https://app.flora.ai:443@evil.example/api/v1/runs/run_1",
        "https://app.flora.ai\\@evil.example/api/v1/runs/run_1",
        "https://evil.example\\.app.flora.ai/api/v1/runs/run_1",
        "https://app.flora.ai\u3002evil.example/api/v1/runs/run_1",
        "https:/app.flora.ai/api/v1/runs/run_1",
        "https:app.flora.ai/api/v1/runs/run_1",
        "//app.flora.ai/api/v1/runs/run_1",
        "/api/v1/runs/run_1",
        " https://app.flora.ai/api/v1/runs/run_1",
        "https://app.flora.ai/api/v1/runs/run_1\r\nX: y",
        "https://app.flora.ai/api/v1/runs/run_1\n",
        "https://[::1]/api/v1/runs/run_1",
        "javascript:alert(1)",
        "file:///etc/passwd",
    ],
)
def test_poll_urls_that_lead_away(poll_url: str) -> None:
    """Anything else is not asked at all."""
    assert poll_target(FLORA, poll_url) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://media.flora.ai/a.png?sig=1",
        "HTTPS://cdn.example:443/a",
        "https://[2606:4700::1111]/a",
        "https://1.1.1.1/a",
    ],
)
def test_outputs_come_over_https(url: str) -> None:
    """Outputs may be fetched over https from any public host."""
    assert media_url(FLORA, url) == url


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://media.flora.ai/a b.png?s=%2f+/", "https://media.flora.ai/a%20b.png?s=%2f+/"),
        (" https://media.flora.ai/a ", "https://media.flora.ai/a"),
        ("https://media.flora.ai/\u00e4\udcff?s=%C3%A9", "https://media.flora.ai/%C3%A4%FF?s=%C3%A9"),
    ],
)
def test_what_is_encoded_in_an_outputs_url(url: str, sent: str) -> None:
    """Spaces and characters beyond ASCII are encoded, also undecodable bytes of a header; the rest is sent as it is."""
    assert media_url(FLORA, url) == sent


@pytest.mark.parametrize(
    "url",
    [
        "http://media.flora.ai/a.png",
        "https://127.0.0.1/a.png",
        "https://localhost/a.png",
        "http://[::1]/a.png",
        "file:///etc/passwd",
        "ftp://media.flora.ai/a",
        "https://user:pw@media.flora.ai/a.png",
        "https://media.flora.ai:8443/a.png",
        "https://10.0.0.7/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/a",
        "https://[fd00::1]/a",
        "https://[fe80::1]/a",
        "https://[::ffff:10.0.0.7]/a",
        "https://[64:ff9b::a00:7]/a",
        "https://[64:ff9b:1::a00:7]/a",
        "https://[2002:a00:7::]/a",
        "https://[2001:db8::1]/a",
        "https://0.0.0.0/a",
        "https://127.1/a",
        "https://0x7f.1/a",
        "https://2130706433/a",
        "https://127.0.0.1./a",
        "https://localhost./a",
        "https://flora.localhost/a",
        "https://[fec0::1]/a",
        "https://[::7f00:1]/a",
        "https://[::ffff:0:7f00:1]/a",
        "https://224.0.0.1/a",
        "https://media.flora.ai/a\n.png",
        "",
    ],
)
def test_outputs_that_are_not_fetched(url: str) -> None:
    """Plain http, and this machine while the API is elsewhere; the error shows no query."""
    with pytest.raises(DownloadError, match="url"):
        media_url(FLORA, url)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "192.0.0.9", "198.17.255.255", "::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808"),
        *("2606:4700::1111", "2620:4f:8000::1", "media.flora.ai", "1.1.1.1.example", "cafe", "x.0xfood"),
    ],
)
def test_public_addresses(address: str) -> None:
    """An address is public if it is global unicast, also inside of another; a name is until it is resolved."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("fec0::1", "feff::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::", "::1", "100::1", "4000::1", "5f00::1"),
        *("2001:db8::1", "3fff::1", "2001:0:7f00:1::", "64:ff9b:1::808:808"),
        *("::127.0.0.1", "::8.8.8.8", "::ffff:0:8.8.8.8", "::ffff:10.0.0.7", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
        *("10.0.0.7", "100.64.0.1", "169.254.169.254", "192.0.0.1", "192.88.99.1", "198.18.0.1", "203.0.113.1"),
        *("0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::ffff:192.88.99.1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    """Special ranges are not public, however they are embedded in an address of IPv6."""
    assert not is_public(address)


def test_private_hosts_where_they_are_allowed() -> None:
    """Over https all the same."""
    assert media_url(FLORA, "https://10.0.0.7:9000/a.png", allow_private_hosts=True)
    with pytest.raises(DownloadError, match="not https"):
        media_url(FLORA, "http://10.0.0.7/a.png", allow_private_hosts=True)


def test_http_to_another_machine_where_it_is_allowed() -> None:
    """With ``allow_insecure`` the base URL may use http on another machine."""
    assert parse_base_url("http://flora.internal/api/v1", allow_insecure=True).url == "http://flora.internal/api/v1"


def test_a_proxy_must_not_read_the_key() -> None:
    """Over https it sees nothing; a plain request would show it everything, unless it is on this machine."""
    plain = parse_base_url("http://127.0.0.1:8080/api/v1")
    assert check_proxy(FLORA, "http://proxy.example:3128", allow_insecure=False)
    assert check_proxy(plain, "http://127.0.0.1:3128", allow_insecure=False)
    assert check_proxy(plain, "http://me:pw@proxy.example:3128", allow_insecure=True)
    for origin, proxy in ((plain, "http://proxy.example:3128"), (FLORA, "socks5://x"), (FLORA, "http://a b")):
        with pytest.raises(ConfigurationError, match="proxy"):
            check_proxy(origin, proxy, allow_insecure=False)


def test_signed_urls_are_not_shown() -> None:
    """The query of a signed URL is a credential."""
    with pytest.raises(DownloadError) as caught:
        media_url(FLORA, "http://media.flora.ai/a.png?signature=secret")
    assert "secret" not in str(caught.value)
    assert "media.flora.ai/a.png" in str(caught.value)


def test_outputs_on_this_machine_if_the_api_is() -> None:
    """A sandbox's media are fetched over http."""
    assert media_url(LOCAL, "http://localhost:9/a.png") == "http://localhost:9/a.png"
    with pytest.raises(DownloadError, match="not https"):
        media_url(LOCAL, "http://media.flora.ai/a.png")


def test_call_backs() -> None:
    """https, or http on this machine if the API is there too."""
    assert is_https_or_loopback(FLORA, "https://me.example/hook")
    assert not is_https_or_loopback(FLORA, "http://me.example/hook")
    assert not is_https_or_loopback(FLORA, "http://localhost/hook")
    assert is_https_or_loopback(LOCAL, "http://localhost/hook")
    assert not is_https_or_loopback(LOCAL, "http://me.example/hook")
    assert not is_https_or_loopback(LOCAL, "me.example")


def test_naming_an_origin() -> None:
    """Only the origin of a foreign URL is reported."""
    assert origin_of("https://evil.example/path?secret=1") == "https://evil.example"
    assert origin_of("/just/a/path") is None
