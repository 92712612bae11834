"""Secrets: a value whose key looks like a secret's is shown and kept as ``***``. So are a URI's user and password."""

import re
from collections.abc import Iterable
from urllib.parse import unquote

HIDDEN = "***"

_SECRET = re.compile(
    r"secret|passw|pwd|token(?!i[sz])|credential(?!s?[._-]?provider)|signature"
    r"|(access|account|api|auth|encryption|private|shared)[._-]?key(?!file)|(?<![a-z])(sas|sig|pass)(?![a-z])",
    re.IGNORECASE,
)
_PAIR = re.compile(r"""(?<![\w.%-])(?P<key>[\w.%-]+)=(?P<value>"[^"]*"|'[^']*'|[^\s&]+?(?=[:;,]?(?:[\s&]|$)))""")
"""A key begins where its letters do: a search that began at each of them would take forever for a long text."""
_QUERY_KEY = re.compile(r"[?&;#]([\w.%-]+)=")
_PASSWORD = re.compile(r"(?P<before>:/+)[^/@:\s\[]*:(?!\d*(?:[/?#\s]|$))[^@\s]*@")
"""USER:PASSWORD@, but neither HOST:PORT/x@y nor USER@. The password may contain a slash, as many keys of AWS do."""
_S3_USER = re.compile(r"(?P<before>\bs3[an]?:/+)[^/@\s]*@")


def is_secret(key: str) -> bool:
    """Whether a key, such as spark.hadoop.fs.s3a.secret.key, looks like that of a secret."""
    return _SECRET.search(unquote(key)) is not None


def redacted(text: str) -> str:
    """``text`` without the values of secrets in KEY=VALUE, and without the credentials in URIs."""
    for credentials in (_PASSWORD, _S3_USER):
        text = credentials.sub(rf"\g<before>{HIDDEN}@", text)
    return _PAIR.sub(lambda pair: f"{pair['key']}={HIDDEN}" if is_secret(pair["key"]) else pair[0], text)


def has_credentials(uri: str) -> bool:
    """Whether a URI contains a password, or a query key that looks like a secret's."""
    return bool(_PASSWORD.search(uri) or _S3_USER.search(uri) or any(map(is_secret, _QUERY_KEY.findall(uri))))


def redacted_command(arguments: Iterable[str]) -> list[str]:
    """A command's arguments without secrets: those of ``redacted``, and the argument after a flag such as --password.

    Idempotent.
    """
    found: list[str] = []
    hide = False
    for argument in arguments:
        flag, _, rest = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        key, equals, _ = (rest if "=" in rest and not is_secret(flag) else argument).partition("=")
        if hide:
            found.append(HIDDEN)
        elif equals and is_secret(key):  # the value may contain spaces
            found.append(f"{argument[: argument.index(key) + len(key)]}={HIDDEN}")
        else:
            found.append(redacted(argument))
        hide = not hide and not equals and flag != "" and is_secret(flag)
    return found
