import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_tasks.lanes.endpoint import Endpoint, parse
from acme_tasks.lanes.errors import SettingsError

CHECKED = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
LOCAL = Endpoint(
    variable="BROKER_URL",
    scheme="redis",
    hosts=(("localhost", 6379),),
    path=None,
    database=0,
    username=None,
    password=None,
    tls={},
    master="",
    sentinel_username=None,
    sentinel_password=None,
    sentinel_tls={},
)
WORD, AWKWARD_WORD, HARMLESS_WORD = "secret", "p@ss/w#rd?%: é", "a+b=c;d&e[f]é"


def read(url: str) -> Endpoint:
    return parse("BROKER_URL", url, {})


def refusal(url: str, variable: str = "BROKER_URL") -> str:
    with pytest.raises(SettingsError) as caught:
        parse(variable, url, {})
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{variable}: ")
    return text.removeprefix(f"{variable}: ")


SOCKET = replace(LOCAL, scheme="redis+socket", hosts=(), path="/run/redis.sock")
SENTINEL = replace(LOCAL, scheme="sentinel", hosts=(("one", 26379),), master="mymaster")
MEANINGS = {
    "the default": ("redis://localhost:6379/0", LOCAL),
    "no port, no database": ("redis://localhost", LOCAL),
    "an empty path": ("redis://localhost/?", LOCAL),
    "an upper-case scheme": ("REDIS://localhost", LOCAL),
    "white space around it": ("  redis://localhost:6379/0\r\n", LOCAL),
    "a database": ("redis://localhost/15", replace(LOCAL, database=15)),
    "a database as an option": ("redis://localhost?db=3", replace(LOCAL, database=3)),
    "a database said twice alike": (
        "redis://localhost/3?virtual_host=3",
        replace(LOCAL, database=3),
    ),
    "an IPv6 address": ("redis://[::1]:7000/0", replace(LOCAL, hosts=(("::1", 7000),))),
    "an IPv6 address, no port": ("redis://[::1]", replace(LOCAL, hosts=(("::1", 6379),))),
    "an IPv6 zone": ("redis://[fe80::1%25lo]", replace(LOCAL, hosts=(("fe80::1%lo", 6379),))),
    "a user and a password": (
        "redis://app:secret@localhost/0",
        replace(LOCAL, username="app", password=WORD),
    ),
    "a password alone": ("redis://:secret@localhost/0", replace(LOCAL, password=WORD)),
    "a user without a password": ("redis://app:@localhost/0", replace(LOCAL, username="app")),
    "an empty user and password": ("redis://:@localhost/0", LOCAL),
    "an escaped user and password": (
        "redis://a%40b:p%40ss%2Fw%23rd%3F%25%3A%20%C3%A9@localhost/0",
        replace(LOCAL, username="a@b", password=AWKWARD_WORD),
    ),
    "what need not be escaped": (
        "redis://:a+b=c;d&e[f]é@localhost/0",
        replace(LOCAL, password=HARMLESS_WORD),
    ),
    "several hosts": (
        "redis://:secret@one/2;redis://:secret@two:7000/2",
        replace(LOCAL, hosts=(("one", 6379), ("two", 7000)), password=WORD, database=2),
    ),
    "TLS": ("rediss://localhost", replace(LOCAL, scheme="rediss", tls=CHECKED)),
    "a socket": ("redis+socket:///run/redis.sock", SOCKET),
    "a socket's database": (
        "redis+socket:///run/redis.sock?virtual_host=2",
        replace(SOCKET, database=2),
    ),
    "a socket's password": (
        "redis+socket://app:p%2Fw@/run/redis.sock",
        replace(SOCKET, username="app", password="/".join("pw")),
    ),
    "a socket with a space": (
        "redis+socket:///run/my%20redis.sock",
        replace(SOCKET, path="/run/my redis.sock"),
    ),
    "a Sentinel": ("sentinel://one", SENTINEL),
    "a Sentinel with TLS": (
        "sentinel://one?ssl=true",
        replace(SENTINEL, tls=CHECKED, sentinel_tls=CHECKED),
    ),
    "a Sentinel with TLS to the server": (
        "sentinel://one?ssl=server&ssl_check_hostname=no",
        replace(SENTINEL, tls=CHECKED | {"ssl_check_hostname": False}),
    ),
    "a Sentinel with TLS to itself": (
        "sentinel://one?ssl=sentinels",
        replace(SENTINEL, sentinel_tls=CHECKED),
    ),
    "a Sentinel without TLS": ("sentinel://one?ssl=false", SENTINEL),
}


@pytest.mark.parametrize(("url", "endpoint"), MEANINGS.values(), ids=MEANINGS)
def test_a_url_means(url: str, endpoint: Endpoint) -> None:
    assert read(url) == endpoint


@pytest.mark.parametrize("word", ["none", "CERT_NONE"])
def test_certificates_are_not_checked_when_told_so(word: str) -> None:
    unchecked = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert read(f"rediss://localhost?ssl_cert_reqs={word}").tls == unchecked


@pytest.mark.parametrize("word", ["required", "CERT_REQUIRED", "Required"])
def test_certificates_are_checked_in_each_spelling(word: str) -> None:
    assert read(f"rediss://localhost?ssl_cert_reqs={word}").tls == CHECKED


def test_files_for_tls_are_named_by_options(tmp_path: Path) -> None:
    for name in ("ca.pem", "a+b.crt", "a.key"):
        (tmp_path / name).write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    query = (
        f"ssl_ca_certs={tmp_path}/ca.pem&ssl_ca_path={tmp_path}&ssl_certfile={tmp_path}/a+b.crt"
        f"&ssl_keyfile={tmp_path}/a.key&ssl_password=pass%26word&ssl_ciphers=HIGH"
    )
    endpoint = read(f"rediss://localhost?{query}")
    assert endpoint.tls == CHECKED | {
        "ssl_ca_certs": f"{tmp_path}/ca.pem",
        "ssl_ca_path": str(tmp_path),
        "ssl_certfile": f"{tmp_path}/a+b.crt",
        "ssl_keyfile": f"{tmp_path}/a.key",
        "ssl_password": "pass&word",
        "ssl_ciphers": "HIGH",
    }
    assert "pass" not in repr(endpoint) + endpoint.shown


def test_an_endpoint_can_be_a_key_be_copied_and_be_sent_to_another_process() -> None:
    endpoint = read("rediss://app:secret@localhost")
    assert {endpoint: 1}[copy.deepcopy(endpoint)] == 1
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint  # noqa: S301 - our own


SHOWN = {
    "no password": ("redis://host", "redis://host:6379/0"),
    "a user": ("redis://a%40b:secret@host:6379/0", "redis://a%40b:***@host:6379/0"),
    "a user alone": ("redis://app:@host:6379/0", "redis://app:@host:6379/0"),
    "a password": ("rediss://:secret@[::1]/2?ssl_cert_reqs=none", "rediss://:***@[::1]:6379/2"),
    "a socket": (
        "redis+socket://:secret@/run/my%20redis.sock",
        "redis+socket://:***@/run/my%20redis.sock?virtual_host=0",
    ),
    "several": (
        "sentinel://:secret@one/1?ssl=true;sentinel://:secret@two/1?ssl=true",
        "sentinel://:***@one:26379/1;sentinel://:***@two:26379/1",
    ),
}


@pytest.mark.parametrize(("url", "shown"), SHOWN.values(), ids=SHOWN)
def test_a_shown_url_has_no_secrets(url: str, shown: str) -> None:
    assert read(url).shown == shown
    assert "secret" not in repr(read(url))


EXPECTED = "expected redis://, rediss://, redis+socket:// or sentinel://"
NO_SCHEME = f"no scheme ({EXPECTED})"
RABBITMQ = (
    "RabbitMQ is not supported: leases are scripts of Redis, and a second transport would halve "
    "what this one guarantees; use Redis or Valkey, or plain Celery with RabbitMQ's quorum queues"
)
ESCAPE = (
    "the user or the password holds a character that must be escaped: / is %2F, # is %23, "
    "? is %3F, @ is %40, : is %3A, % is %25 (an @ in a path or an option is %40, too)"
)
NO_COLON = "no : before the @ (expected user:password@, :password@ without a user, or user:@)"
CONTROL = (
    "a space, a line break or another control character within the URL (escape it: a space is %20)"
)
HASH = "a # has no meaning in this URL (escape it: # is %23)"
SEVERAL = "each of several URLs begins with its scheme, as in sentinel://one/0;sentinel://two/0"
NO_HOST = "no host (expected one, as in redis://localhost:6379/0)"
BAD_HOST = "the host is neither a name nor an address"
BAD_PORT = "the port is not a number from 1 to 65535"
BRACKETS = "more than one : in the host (expected an IPv6 address in brackets: redis://[::1]:6379)"
DATABASE = "the database is not a number (expected 0 or more, as in /0)"
RELATIVE = "no absolute path of a socket (expected three slashes, redis+socket:///run/redis.sock)"
DECIDED = "is not for the URL: the project decides it, the same for every connection; leave it out"
NOT_UTF8 = "what is escaped with % is not UTF-8 text"
LOGIN = (
    "goes before the host: redis://user:password@host/0, redis+socket://:password@/run/redis.sock"
)
SENTINELS = "is not for the URL; set SENTINEL_USERNAME, SENTINEL_PASSWORD, SENTINEL_MASTER"
KNOWN = (
    "db, ssl, ssl_cert_reqs, ssl_check_hostname, ssl_ca_certs, ssl_ca_path, ssl_certfile, "
    "ssl_keyfile, ssl_password, ssl_ciphers"
)
ALIKE = "several URLs may differ in the host alone"
MISTAKES = {
    "nothing": ("", NO_SCHEME),
    "no scheme": ("localhost", NO_SCHEME),
    "a host for a scheme": ("localhost:6379", NO_SCHEME),
    "a login for a scheme": (":secret@localhost:6379", NO_SCHEME),
    "RabbitMQ": ("amqp://user:secret@host//", RABBITMQ),
    "RabbitMQ with TLS": ("amqps://host", RABBITMQ),
    "a misspelt scheme": ("reddis://host", f"unknown scheme, did you mean redis://? ({EXPECTED})"),
    "Valkey's scheme": ("valkey://host", f"unknown scheme, did you mean redis://? ({EXPECTED})"),
    "redis-py's socket": (
        "unix:///run/redis.sock",
        f"unknown scheme, did you mean redis+socket://? ({EXPECTED})",
    ),
    "another broker": ("sqs://key:secret@", f"unknown scheme ({EXPECTED})"),
    "quotation marks": (
        '"redis://:secret@host"',
        "quotation marks around the URL; leave them out",
    ),
    "a space": ("redis://:sec ret@host", CONTROL),
    "a line break": ("redis://host\n/0", CONTROL),
    "an invisible character": ("redis://ho\u200bst", CONTROL),
    "an unescaped /": ("redis://:secret/part@host/0", ESCAPE),
    "an unescaped #": ("redis://:secret#part@host/0", ESCAPE),
    "an unescaped ?": ("redis://:secret?part@host/0", ESCAPE),
    "an unescaped @": ("redis://:secret@part@host/0", ESCAPE),
    "an unescaped :": ("redis://:secret:part@host/0", ESCAPE),
    "an unescaped %": ("redis://:secret%part@host/0", ESCAPE),
    "many of them": ("rediss://app:p@ss/w#rd?@host:6379/0", ESCAPE),
    "in a socket's password": ("redis+socket://:secret/part@/run/redis.sock", ESCAPE),
    "in the second URL": ("sentinel://:secret@one/0;sentinel://:sec/ret@two/0", ESCAPE),
    "a % in the path": (
        "redis+socket:///run/100%.sock",
        "a % that escapes nothing (escape it: % is %25)",
    ),
    "a password that is no text": ("redis://:%FF@host/0", NOT_UTF8),
    "a password without its colon": ("redis://secret@host/0", NO_COLON),
    "a fragment": ("redis://:secret@host/0#one", HASH),
    "several with one scheme": ("sentinel://one:26379;two:26379", SEVERAL),
    "several with one scheme and a path": ("sentinel://one/0;two/0", SEVERAL),
    "a semicolon at the end": ("sentinel://one/0;", SEVERAL),
    "no host": ("redis:///0", NO_HOST),
    "no host, a port": ("redis://:6379/0", NO_HOST),
    "no host, a password": ("redis://:secret@/0", NO_HOST),
    "a host that no resolver takes": ("redis://a..b", BAD_HOST),
    "a host with *": ("redis://*:6379", BAD_HOST),
    "brackets around a name": ("redis://[host]:6379", BAD_HOST),
    "IPv6 without brackets": ("redis://::1:6379/0", BRACKETS),
    "a bracket without its end": ("redis://[::1/0", BRACKETS),
    "no port": ("redis://host:/0", BAD_PORT),
    "a port that is no number": ("redis://:secret@host:six/0", BAD_PORT),
    "a port of 0": ("redis://host:0/0", BAD_PORT),
    "a port out of range": ("redis://host:65536/0", BAD_PORT),
    "a port behind brackets": ("redis://[::1]:six/0", BAD_PORT),
    # Seen before: a traceback of kombu's.
    "a database that is no number": ("redis://:secret@host/tasks", DATABASE),
    "a negative database": ("redis://host/-1", DATABASE),
    "a database as an option that is none": ("redis+socket:///run/redis.sock?db=x", DATABASE),
    "two databases": ("redis://host/1?db=2", "two databases are named; leave one out"),
    "a relative socket": ("redis+socket://run/redis.sock", RELATIVE),
    "a socket without a path": ("redis+socket:///", RELATIVE),
    "a socket with a NUL": ("redis+socket:///run/%00", RELATIVE),
    "a socket on a host": ("redis+socket://localhost/run/redis.sock", RELATIVE),
    "a password as an option": ("redis+socket:///run/redis.sock?password=x", f"password {LOGIN}"),
    "a user as an option": ("redis://host/0?username=app", f"username {LOGIN}"),
    "the Sentinels' password": (
        "sentinel://one?sentinel_password=secret",
        f"sentinel_password {SENTINELS}",
    ),
    "a time-out": ("redis://host/0?socket_timeout=5", f"socket_timeout {DECIDED}"),
    "a health check": (
        "redis://host/0?health_check_interval=5",
        f"health_check_interval {DECIDED}",
    ),
    "a misspelt option": (
        "rediss://host/0?ssl_ca_cert=x",
        "unknown option ssl_ca_cert; did you mean ssl_ca_certs?",
    ),
    "an unknown option": (
        "redis://host/0?colour=secret",
        f"unknown option colour; known: {KNOWN}",
    ),
    "an option twice": ("redis://host?db=1&db=2", "db is there twice; leave one out"),
    "an option for TLS without TLS": (
        "redis://host?ssl_cert_reqs=none",
        "ssl_cert_reqs is for TLS, and none is spoken here; write rediss://",
    ),
    "an option for TLS of a socket": (
        "redis+socket:///run/redis.sock?ssl_cert_reqs=none",
        "ssl_cert_reqs is for TLS, and none is spoken here; leave it out",
    ),
    "an option for TLS of Sentinels": (
        "sentinel://one?ssl_cert_reqs=none",
        "ssl_cert_reqs is for TLS, and none is spoken here; add ssl=true",
    ),
    "ssl for a server": (
        "redis://host?ssl=true",
        "ssl is for sentinel:// alone (TLS to a server is rediss://)",
    ),
    "ssl that is none": (
        "sentinel://one?ssl=secret",
        "ssl is none of true, server, sentinels, false",
    ),
    "a check that is none": (
        "rediss://host?ssl_cert_reqs=requird",
        "ssl_cert_reqs must be required, optional or none",
    ),
    "a flag that is none": (
        "rediss://host?ssl_check_hostname=maybe",
        "ssl_check_hostname is neither true nor false",
    ),
    "a name checked without its certificate": (
        "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=true",
        "ssl_check_hostname=true needs ssl_cert_reqs=required",
    ),
    "a file that is not there": (
        "rediss://host?ssl_ca_certs=/nowhere/ca.pem",
        "ssl_ca_certs: /nowhere/ca.pem: No such file or directory",
    ),
    "a file that is none": ("rediss://host?ssl_ca_certs=%00", "ssl_ca_certs: not a path"),
    "a folder that is not there": (
        "rediss://host?ssl_ca_path=/nowhere",
        "ssl_ca_path: /nowhere: no such folder",
    ),
    "a key without its certificate": (
        "rediss://host?ssl_keyfile=/dev/null",
        "ssl_keyfile needs ssl_certfile",
    ),
    "two schemes": (
        "redis://one;rediss://two",
        f"URL 2 differs from the first in its scheme; {ALIKE}",
    ),
    "two databases of two hosts": (
        "redis://one/0;redis://two/0;redis://three/1",
        f"URL 3 differs from the first in its database; {ALIKE}",
    ),
    "two users": (
        "redis://a:secret@one;redis://two",
        f"URL 2 differs from the first in its user; {ALIKE}",
    ),
    "two passwords": (
        "sentinel://:secret@one;sentinel://two",
        f"URL 2 differs from the first in its password; {ALIKE}",
    ),
    "two ways of TLS": (
        "rediss://one?ssl_cert_reqs=none;rediss://two",
        f"URL 2 differs from the first in its options; {ALIKE}",
    ),
    "two sockets": (
        "redis+socket:///run/a.sock;redis+socket:///run/a.sock",
        "a Unix socket is one server; leave the other URLs out",
    ),
}


@pytest.mark.parametrize("variable", ["BROKER_URL", "RESULT_URL"])
@pytest.mark.parametrize(("url", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_without_its_secrets(
    variable: str, url: str, said: str
) -> None:
    assert refusal(url, variable) == said


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    said = "the private key is encrypted; add ssl_password, or decrypt it"
    assert refusal(f"rediss://host?ssl_certfile={key}") == said


# What a URL may look like around a password.
AROUND = st.sampled_from(
    [
        *("redis://{}host:6379/0", "rediss://{}[::1]/3?ssl_cert_reqs=none", "redis://{}host"),
        *("redis+socket://{}/run/redis.sock?virtual_host=1", "sentinel://{}one?ssl=true"),
        "sentinel://{0}one:26379/0;sentinel://{0}two:26379/0",
    ]
)
# Mostly what means something in a URL.
AWKWARD = st.text(
    st.one_of(st.sampled_from("/#?@:%;&=[]+ \t\n\\.2Fabc"), st.characters(codec="utf-8"))
)


NOT_ALLOWED = r"[/#?@: ]|%(?![0-9a-fA-F]{2})"


def is_utf8(escaped: str) -> bool:
    try:
        return bool(unquote_to_bytes(escaped).decode() or True)
    except UnicodeDecodeError:
        return False


@settings(deadline=None, database=None)
@given(around=AROUND, user=AWKWARD, password=AWKWARD)
def test_any_escaped_user_and_password_come_back_exactly(
    around: str, user: str, password: str
) -> None:
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@"
    endpoint = read(around.format(login))
    assert (endpoint.username or "", endpoint.password or "") == (user, password)
    plain = read(around.format(""))
    assert replace(endpoint, username=None, password=None) == plain
    assert ("***" in endpoint.shown) == bool(password)
    assert read(endpoint.shown).hosts == plain.hosts


@settings(deadline=None, database=None)
@given(around=AROUND, user=st.sampled_from(["", "app"]), password=AWKWARD)
def test_no_part_of_an_unescaped_password_is_ever_shown(
    around: str, user: str, password: str
) -> None:
    url = around.format(f"{user}:{password}@")
    if password.isprintable() and not re.search(NOT_ALLOWED, password) and is_utf8(password):
        endpoint, other = read(url), read(around.format(f"{user}:{'x' if password else ''}@"))
        assert (endpoint.shown, repr(endpoint)) == (other.shown, repr(other))
    else:
        # One of a few constant texts, whatever the password is.
        assert refusal(url) in {ESCAPE, CONTROL, NOT_UTF8}
