"""Protobuf messages made at import from a table, so that no generated code and no ``protoc`` are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "double": _FIELD.TYPE_DOUBLE,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}

# Field name -> (number, type); "*" before a type repeats it; other words than scalars name a message or an enum.
Fields = Mapping[str, tuple[int, str]]


def build(
    package: str, *, messages: Mapping[str, Fields], enums: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """Message classes by name.

    Args:
        package: protobuf package of all of them.
        messages: fields by message name.
        enums: numbers by enum name; the first number of each must be 0.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, numbers in (enums or {}).items():
        values = [descriptor_pb2.EnumValueDescriptorProto(name=key, number=number) for key, number in numbers.items()]
        file.enum_type.append(descriptor_pb2.EnumDescriptorProto(name=name, value=values))
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = _FIELD.LABEL_REPEATED if kind.startswith("*") else _FIELD.LABEL_OPTIONAL
            word = kind.removeprefix("*")
            if word in _SCALARS:
                field.type = _SCALARS[word]
            else:
                field.type = _FIELD.TYPE_ENUM if word in (enums or {}) else _FIELD.TYPE_MESSAGE
                field.type_name = f".{package}.{word}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}
