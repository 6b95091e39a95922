"""Which addresses are public."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fetch.addresses import is_public


@pytest.mark.parametrize(
    "text",
    [
        *("1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "168.63.129.15", "172.15.255.255"),
        *("172.32.0.0", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
        *("2001:200::1", "2606:2800:220:1::1", "2a00:1450:4001::1", "3ffe::1", "2003::1"),
    ],
)
def test_public(text):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
        *("127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
        *("192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1"),
        *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        "::",
        "::1",
        "::169.254.169.254",  # IPv4-compatible
        "::8.8.8.8",
        "::ffff:10.0.0.1",  # IPv4-mapped
        "::ffff:8.8.8.8",
        "::ffff:0:7f00:1",  # IPv4-translated
        "64:ff9b::a9fe:a9fe",  # NAT64
        "64:ff9b::808:808",
        "64:ff9b:1::a9fe:a9fe",  # NAT64 by a local prefix
        "100::1",  # discard
        "2001::1",  # Teredo
        "2001:0:53aa:64c:0:0:0:1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:a9fe:a9fe::",  # 6to4
        "2002:808:808::1",
        "2620:4f:8000::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",  # metadata of AWS
        "fe80::1",
        "fe80::1%eth0",
        "2606:2800:220:1::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_not_public(text):
    assert not is_public(ipaddress.ip_address(text))


@given(st.ip_addresses())
def test_never_more_than_the_standard_library_lets_through(address):
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast
