"""The arguments of system calls, as callers send them: read strictly."""

import msgspec


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Ps(msgspec.Struct, forbid_unknown_fields=True):
    all: bool = False


class OfTask(msgspec.Struct, forbid_unknown_fields=True):
    task: str


class Renice(msgspec.Struct, forbid_unknown_fields=True):
    task: str
    klass: str = msgspec.field(name="class")


class OfModel(msgspec.Struct, forbid_unknown_fields=True):
    model: str


class OfSession(msgspec.Struct, forbid_unknown_fields=True):
    session: str
    client: str | None = None


class AddModel(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    name: str


class OfApp(msgspec.Struct, forbid_unknown_fields=True):
    app: str
