"""Thrift's compact protocol, as far as Parquet's headers and footer need it.

Source: thrift/doc/specs/thrift-compact-protocol.md. A field is (id, type, encoded value); a struct is its fields by
rising id. parquet-format's parquet.thrift defines the ids of Parquet's fields.
"""

from collections.abc import Sequence

Field = tuple[int, int, bytes]

_TRUE, _BYTE, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 3, 5, 6, 8, 9, 12


def varint(number: int) -> bytes:
    """ULEB128: seven bits a byte, the lowest bits first."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def integer(number: int) -> bytes:
    """A signed integer of any width: zigzag, then varint."""
    return varint(number * 2 if number >= 0 else -number * 2 - 1)


def binary(content: bytes) -> bytes:
    return varint(len(content)) + content


def struct(*fields: Field) -> bytes:
    encoded, previous = bytearray(), 0
    for number, kind, value in fields:
        encoded.append((number - previous) << 4 | kind)
        encoded += value
        previous = number
    return bytes(encoded) + b"\0"


def true(number: int) -> Field:
    return number, _TRUE, b""


def byte(number: int, value: int) -> Field:
    return number, _BYTE, bytes([value])


def i32(number: int, value: int) -> Field:
    return number, _I32, integer(value)


def i64(number: int, value: int) -> Field:
    return number, _I64, integer(value)


def text(number: int, value: str | bytes) -> Field:
    return number, _BINARY, binary(value.encode() if isinstance(value, str) else value)


def nested(number: int, *fields: Field) -> Field:
    return number, _STRUCT, struct(*fields)


def structs(number: int, items: Sequence[bytes]) -> Field:
    return _list(number, _STRUCT, items)


def integers(number: int, items: Sequence[int]) -> Field:
    return _list(number, _I32, [integer(item) for item in items])


def texts(number: int, items: Sequence[str]) -> Field:
    return _list(number, _BINARY, [binary(item.encode()) for item in items])


def _list(number: int, kind: int, items: Sequence[bytes]) -> Field:
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + varint(len(items))
    return number, _LIST, head + b"".join(items)
