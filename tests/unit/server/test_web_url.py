"""What is a URL that may be fetched, and in which form it is sent."""

import ipaddress

import pytest

from server.web_url import MAX_URL_CHARS, HostList, InvalidUrl, parse_url

PORTS = frozenset({80, 443})


def parse(text):
    return parse_url(text, ports=PORTS)


@pytest.mark.parametrize(
    ("text", "authority", "target"),
    [
        ("https://example.com", "example.com", "/"),
        ("HTTPS://Example.COM/A.png", "example.com", "/A.png"),
        ("http://example.com:80/a", "example.com", "/a"),
        ("http://example.com:443/a", "example.com:443", "/a"),
        ("https://example.com:0443/a", "example.com", "/a"),
        ("https://example.com./a", "example.com", "/a"),
        ("https://example.com?size=2", "example.com", "/?size=2"),
        ("https://example.com/a?b=/c?d#e?f", "example.com", "/a?b=/c?d"),
        ("https://example.com/a%20b/%zz/../c;d", "example.com", "/a%20b/%zz/../c;d"),
        ("https://example.com/图.png?q=é", "example.com", "/%E5%9B%BE.png?q=%C3%A9"),
        ("https://bücher.example/", "xn--bcher-kva.example", "/"),
        ("https://图片.例子。中国/", "xn--wcsw84d.xn--fsqu00a.xn--fiqs8s", "/"),
        ("https://ＥＸＡＭＰＬＥ．com/", "example.com", "/"),
        ("https://a_b.example.com/", "a_b.example.com", "/"),
        ("https://93.184.216.34/", "93.184.216.34", "/"),
        ("https://93.184.216.34./", "93.184.216.34", "/"),
        ("https://[2606:2800:0220:1::1]/", "[2606:2800:220:1::1]", "/"),
        ("http://[2606:2800:220:1::1]:443/", "[2606:2800:220:1::1]:443", "/"),
        ("https://[::ffff:1.2.3.4]/", "[::ffff:102:304]", "/"),
        ("https://localhost/", "localhost", "/"),
    ],
)
def test_normal_forms(text, authority, target):
    url = parse(text)
    assert (url.authority, url.target) == (authority, target)
    again = parse(f"{url.scheme}://{url.authority}{url.target}")
    assert again == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https:",
        "https://",
        "https:///path",
        "https:/example.com/",
        "https:example.com",
        "//example.com/a",
        "ftp://example.com/a",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        " https://example.com/",
        "https://example.com/\n",
        "https://example.com/a b",
        "https://example.com/\r\nHost: inner",
        "https://example.com\t/",
        "https://example.com/\x00",
        "https://example.com\\@inner/",
        "https:\\\\example.com\\a",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://@example.com/",
        "https://example.com:@inner/",
        "https://example.com#@inner/".replace("#", "%23"),
        "https://example.com:/",
        "https://example.com:8080/",
        "https://example.com:22/",
        "https://example.com:0/",
        "https://example.com:-80/",
        "https://example.com:80:80/",
        "https://example.com:８０/",
        "https://example.com:000443/",
        "https://exa%6dple.com/",
        "https://example..com/",
        "https://example.com../",
        "https://./",
        "https://.example.com/",
        "https://-example.com/",
        "https://example-.com/",
        "https://exam!ple.com/",
        "https://" + "a" * 64 + ".com/",
        "https://" + "a." * 127 + "com/",
        "https://" + "é" * 100_000 + ".com/",
        "https://\ud800.com/",
        "https://example.com/\ud800",
        "https://example.com/" + "a" * MAX_URL_CHARS,
        # Addresses in spellings that resolvers understand and filters do not
        "http://2130706433/",
        "http://017700000001/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.01/",
        "http://127.0.0.0x1/",
        "http://127.0.0.1../",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://example.1/",
        "http://example.0x/",
        "http://[::1/",
        "http://::1/",
        "http://[::1]x/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[v1.x]/",
        "http://[1.2.3.4]/",
        "http://[::1::]/",
        "http://[]/",
    ],
)
def test_refused(text):
    with pytest.raises(InvalidUrl) as caught:
        parse(text)
    assert "example" not in str(caught.value)
    assert "inner" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://１２７。０。０。１/", "127.0.0.1"),
        ("http://①②⑦.⓪.⓪.①/", "127.0.0.1"),
        ("http://127.0.0.1./", "127.0.0.1"),
        ("http://[0:0::0:1]/", "::1"),
        ("http://[::127.0.0.1]/", "::7f00:1"),
    ],
)
def test_disguised_addresses_are_seen_as_what_they_are(text, address):
    assert parse(text).address == ipaddress.ip_address(address)


def test_names_are_no_addresses():
    assert parse("https://example.com/").address is None
    assert parse("https://ⓛocalhost/").host == "localhost"


@pytest.mark.parametrize(
    ("reference", "leads_to"),
    [
        ("/b.png", "https://example.com/b.png"),
        ("b.png", "https://example.com/x/b.png"),
        ("?c=d", "https://example.com/x/a?c=d"),
        ("//other.example/e", "https://other.example/e"),
        ("http://127.0.0.1/", "http://127.0.0.1/"),
        ("https://[::1]/", "https://[::1]/"),
    ],
)
def test_references(reference, leads_to):
    assert parse("https://example.com/x/a?q=1").join(reference) == leads_to


def test_what_logs_get_has_no_query():
    url = parse("https://example.com/a.png?X-Signature=secret#part")
    assert url.without_query == "https://example.com/a.png"


@pytest.mark.parametrize(
    ("host", "is_listed"),
    [
        ("pictures.example", True),
        ("xn--bcher-kva.example", True),
        ("a.cdn.example", True),
        ("a.b.cdn.example", True),
        ("192.0.2.1", True),
        ("cdn.example", False),
        ("evilcdn.example", False),
        ("cdn.example.evil.example", False),
        ("www.pictures.example", False),
        ("pictures.example.com", False),
        ("ictures.example", False),
    ],
)
def test_host_list(host, is_listed):
    hosts = HostList(["Pictures.Example.", "bücher.example", "*.CDN.example", "192.0.2.1"])
    assert (host in hosts) == is_listed


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "*.*.example", "a.*.example", "https://a.example", "a.example:443", "a.example/", "10.1"]
)
def test_what_is_no_entry_of_a_host_list(entry):
    with pytest.raises(InvalidUrl):
        HostList([entry])


def test_an_empty_host_list_has_no_host():
    assert "example.com" not in HostList([])
