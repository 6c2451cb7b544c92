"""File names: what the template of the sink `files` may hold, and the name that it gives."""

import datetime as dt
import re
import string
from pathlib import Path

_FIELDS = frozenset({"route", "target", "date", "hour"})
_UNFIT = re.compile(r"[^\w.=+-]|^\.+")


def fields_of(template: str) -> set[str]:
    """Return the fields of a template.

    >>> sorted(fields_of("{route}/{date}T{hour}"))
    ['date', 'hour', 'route']

    Raises:
        ValueError: it is none, or would lead out of the folder; one sentence.
    """
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ValueError(f"name is no template: {error}") from error
    if not fields <= _FIELDS:
        raise ValueError(f"name may hold {', '.join(f'{{{each}}}' for each in sorted(_FIELDS))}, got {template!r}")
    path = Path(template)
    if path.is_absolute() or ".." in path.parts or not template or template.endswith("/"):
        raise ValueError(f"name must name a file inside the folder, got {template!r}")
    return fields


def file_name(template: str, route: str, target: str, at_s: float) -> str:
    """Return the name for a file that is begun at a time; in what is put in, characters unfit for names are `_`.

    >>> file_name("{target}/{date}T{hour}", "orders", "eu/de", 0.0)
    'eu_de/1970-01-01T00'
    """
    at = dt.datetime.fromtimestamp(at_s, dt.UTC)
    given = {"route": route, "target": target, "date": f"{at:%Y-%m-%d}", "hour": f"{at:%H}"}
    return template.format(**{name: _UNFIT.sub("_", value) or "_" for name, value in given.items()})
