"""Keys: what may be one, and what may be known of one."""

import pytest

import raydistill
from raydistill.core.errors import ConfigError
from raydistill.core.keys import hash_key, key_matches, read_key
from raydistill.core.uris import is_loopback


def test_key_is_read_from_the_environment_where_it_is_not_empty(monkeypatch):
    for text, expected in (("tml-secret", "tml-secret"), ("", None)):
        monkeypatch.setenv("RAYDISTILL_API_KEY", text)
        assert read_key() == expected
    monkeypatch.delenv("RAYDISTILL_API_KEY")
    assert read_key() is None


@pytest.mark.parametrize("key", ["schlüssel", "two words", "line\n", " ", "tab\t", "half \ud800"])
def test_key_that_no_header_carries_is_refused_and_not_repeated(monkeypatch, key):
    monkeypatch.setattr("os.environ", {"RAYDISTILL_API_KEY": key})
    with pytest.raises(ConfigError, match="RAYDISTILL_API_KEY: the key holds") as caught:
        read_key()
    assert key == " " or key not in str(caught.value)
    with pytest.raises(ConfigError, match="api_key: the key holds"):
        raydistill.ServiceClient(api_key=key)


def test_key_matches_its_own_hash_only():
    key_hash = hash_key("tml-secret")
    assert "secret" not in key_hash
    assert key_matches(b"tml-secret", key_hash)
    assert not any(
        key_matches(given, key_hash) for given in (b"", b"tml-secre", b"tml-secret ", b"\xff", b"TML-SECRET")
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.7", "example.org", "127.0.0.1.example.org", "")],
)
def test_only_loopback_addresses_are_this_machines_own(host, expected):
    assert is_loopback(host) is expected
