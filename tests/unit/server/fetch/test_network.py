"""Names, connections and certificates as they are outside of tests."""

import asyncio
import ipaddress
import socket
import ssl

import httpcore2
import pytest

from server.fetch import network
from server.fetch.network import INTERNET, Network, PinnedBackend, public_tls, resolve_by_system
from server.fetch.refusal import FetchRefused, Reason
from server.web_url import parse_url
from tests.support.picture_host import CERTIFICATE, PictureHost, answer, picture_host

LOOPBACK = [ipaddress.ip_address(text) for text in ("127.0.0.2", "127.0.0.3", "127.0.0.1")]


def test_the_systems_resolver_is_asked_for_all_addresses():
    found = asyncio.run(resolve_by_system("localhost", 80))
    assert found
    assert len(found) == len(set(found))
    assert all(ipaddress.ip_address(address).is_loopback for address in found)


@pytest.mark.parametrize("failure", [socket.gaierror(socket.EAI_AGAIN, "try again"), UnicodeError("label too long")])
def test_whatever_a_resolver_raises_is_a_name_that_is_not_there(failure):
    async def resolve(host, port):
        raise failure

    with pytest.raises(FetchRefused) as caught:
        asyncio.run(Network(resolve=resolve).addresses_of(parse_url("http://a.example/", ports=INTERNET.ports)))
    assert caught.value.reason is Reason.NAME


def test_addresses_in_urls_are_judged_and_not_resolved():
    async def resolve(host, port):
        raise AssertionError("asked")

    def addresses(text):
        return asyncio.run(Network(resolve=resolve).addresses_of(parse_url(text, ports=INTERNET.ports)))

    assert addresses("http://93.184.216.34/") == (ipaddress.ip_address("93.184.216.34"),)
    with pytest.raises(FetchRefused) as caught:
        addresses("http://192.168.0.1/")
    assert (caught.value.reason, caught.value.detail) == (Reason.ADDRESS, "192.168.0.1")


async def head_from(host: PictureHost, addresses) -> str:
    backend = PinnedBackend(addresses)
    try:
        stream = await backend.connect_tcp("name.that.is.not.used", host.port)
        await stream.write(b"GET /x HTTP/1.1\r\n\r\n")
        return (await stream.read(4096)).decode()
    finally:
        await backend.aclose()


def test_the_next_address_is_tried_when_one_does_not_answer():
    with picture_host() as host:
        host.answers["/x"] = answer(b"here")
        assert asyncio.run(head_from(host, LOOPBACK)).endswith("here")


def test_not_every_address_is_tried(monkeypatch):
    monkeypatch.setattr(network, "_MAX_ADDRESSES", 2)
    with picture_host() as host, pytest.raises(httpcore2.ConnectError):
        asyncio.run(head_from(host, LOOPBACK))
    assert host.num_connections == 0


def test_certificates_come_from_one_place(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setenv("SSL_CERT_DIR", str(CERTIFICATE.parent))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    context = public_tls()
    names = {pair for certificate in context.get_ca_certs() for field in certificate["subject"] for pair in field}
    assert len(context.get_ca_certs()) > 50
    assert ("commonName", "pictures.example") not in names
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.keylog_filename is None


def test_the_internet_is_asked_by_default_and_only_on_its_ports():
    assert INTERNET.ports == {80, 443}
    assert not INTERNET.admits(ipaddress.ip_address("127.0.0.1"))
    assert INTERNET.admits(ipaddress.ip_address("1.1.1.1"))
