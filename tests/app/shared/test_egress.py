import ipaddress
import socket

import pytest

from app.shared.egress import EgressError, EgressPolicy, check_url, is_public, resolve

NOTHING_INSIDE = EgressPolicy()
REFUSED = [
    "http://127.0.0.1/",
    "http://127.0.0.1:8000/",
    "http://127.8.8.8/",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://00127.0.0.1/",
    "http://127.0.0.1./",
    "http://0.0.0.0/",
    "http://0/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://192.0.0.1/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::]/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://[64:ff9b:1::a00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a00:1::1]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://user@1.1.1.1/",
    "http://user:password@1.1.1.1/",
    "http://1.1.1.1@127.0.0.1/",
    "http://:@1.1.1.1/",
    "http://1.1.1.1:22/",
    "http://1.1.1.1:6379/",
    "http://1.1.1.1:0x50/",
    "http://1.1.1.1:99999/",
    "http://example.com:25/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "//127.0.0.1/",
    "127.0.0.1",
    "",
    "http://",
    "http:///path",
    "http://exa mple.com/",
    "http://example.com\\@127.0.0.1/",
    "http://example.com\r\nHost: inside/",
    "http://example.com/\x00",
    "http://-bad.example.com/",
    "http://exam_ple..com/",
    "http://[1.1.1.1]/",
    "http://[::1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://example.com/..//\\x",
    "http://example.com\\.evil.example/",
    "http://[2606:4700::1111]x/",
    "http://x[2606:4700::1111]/",
    "http://[v1.x]/",
    "http://[1.1.1.1]:80/",
    "http://[fec0::1]/",
    "http://[3fff::1]/",
    "http://[::8.8.8.8]/",
    "http://[::ffff:0:8.8.8.8]/",
    "http://[64:ff9b:1:a00:0:100:808:808]/",
    "http://[2606:4700::5efe:10.0.0.1]/",
    "http://[2606:4700::200:5efe:127.0.0.1]/",
    "http://[fe80::5efe:8.8.8.8]/",
    "http://192.88.99.1/",
    "http://168.63.129.16/machine",
    "http://example.com/é",
    "http://exam\u00adple.com/",
    "http://" + "a" * 2048 + ".com/",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_hostile_url_is_refused_before_anybody_is_asked(url):
    with pytest.raises(EgressError) as caught:
        check_url(url, NOTHING_INSIDE, schemes=("http", "https"))
    assert caught.value.code in ("url_invalid", "url_refused")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com", ("example.com", 443, "https://example.com:443/")),
        ("https://EXAMPLE.com./a?b=c#d", ("example.com", 443, "https://example.com:443/a?b=c")),
        ("http://example.com:8080/x", ("example.com", 8080, "http://example.com:8080/x")),
        ("https://bücher.example/", ("xn--bcher-kva.example", 443, "https://xn--bcher-kva.example:443/")),
        ("http://1.1.1.1/", ("1.1.1.1", 80, "http://1.1.1.1:80/")),
        ("https://[2606:4700:4700::1111]/", ("2606:4700:4700::1111", 443, "https://[2606:4700:4700::1111]:443/")),
    ],
)
def test_an_honest_url_is_understood(url, expected):
    target = check_url(url, NOTHING_INSIDE, schemes=("http", "https"))
    assert (target.host, target.port, target.url) == expected


@pytest.mark.parametrize(
    "found",
    [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::1"], ["fe80::1%eth0"], ["::ffff:169.254.169.254"]],
)
def test_a_name_that_leads_inside_is_refused_without_telling_where(found):
    target = check_url("https://example.com/", NOTHING_INSIDE)
    with pytest.raises(EgressError) as caught:
        resolve(target, NOTHING_INSIDE, lambda _host, _port: found)
    assert caught.value.code == "url_refused"
    assert not any(address in str(caught.value) for address in found)


@pytest.mark.parametrize(("error", "code"), [(socket.EAI_NONAME, "url_refused"), (socket.EAI_AGAIN, "unreachable")])
def test_whether_a_name_exists_inside_cannot_be_told(error, code):
    def nobody(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(error, "Name or service not known")

    target = check_url("https://redis/", NOTHING_INSIDE)
    with pytest.raises(EgressError) as caught:
        resolve(target, NOTHING_INSIDE, nobody)
    with pytest.raises(EgressError) as known:
        resolve(target, NOTHING_INSIDE, lambda _host, _port: ["10.0.0.1"])
    assert caught.value.code == code
    assert (str(caught.value) == str(known.value)) is (code == "url_refused")


def test_the_operator_may_allow_hosts_addresses_and_networks():
    policy = EgressPolicy(("hooks.internal", "10.1.0.0/16", "::1"))
    assert check_url("http://10.1.2.3:9000/", policy, schemes=("http",)).port == 9000
    assert check_url("http://[::1]:9000/", policy, schemes=("http",)).host == "::1"
    target = check_url("http://hooks.internal:9000/", policy, schemes=("http",))
    assert resolve(target, policy, lambda _host, _port: ["192.168.0.1"]) == "192.168.0.1"
    with pytest.raises(EgressError):
        check_url("http://10.2.0.1/", policy, schemes=("http",))


def test_public_addresses_are_public():
    for text in ("1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "2002:808:808::1", "64:ff9b::808:808"):
        assert is_public(ipaddress.ip_address(text)), text
