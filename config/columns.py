"""Which columns an event may have, at which place of its way; without Beam, for whoever needs no more than that."""

import pyarrow as pa
import yaml

from millrace.config.yaml_page import Page
from millrace.schemas import avro
from millrace.schemas.event import ARCHIVE, ARRIVED_AT, BATCH, RECEIPT
from millrace.transforms.custom.declare import ERRORS, fields_of, kind_of, members_of
from millrace.transforms.custom.find import NotFoundError, find

ONLY_PIPELINE = (ARRIVED_AT.name, RECEIPT.name)
"""Columns of batches that are not archived, nor sent anywhere."""

_IN_ORDER = {"added/identity", "added/sessions", "added/touch"}
"""What the stages add that look at a user's past."""
_REMEMBERING = {b"millrace.remembering": b"1"}
"""Metadata of a field that a transform adds which does so, too."""


def known_columns() -> pa.Schema:
    """Return the columns that an event may have behind Millrace's own stages, whether they are on or not."""
    fields = {field.name: field for field in (*ARCHIVE, *BATCH)}
    for name in avro.names("added"):
        fields |= {field.name: field for field in avro.arrow_schema(avro.load(name))}
    return pa.schema(list(fields.values()))


def archived_columns(own: pa.Schema) -> pa.Schema:
    """Return the columns that an archived event may have.

    Args:
        own: those of the transforms (own_columns).
    """
    return pa.schema([*(field for field in known_columns() if field.name not in ONLY_PIPELINE), *own])


def columns_before_order(own: pa.Schema) -> pa.Schema:
    """Return the columns that an event may have before it has its place in the order (delivery/clean.py).

    Args:
        own: those of the transforms (own_columns); not of one that remembers users.
    """
    fields = {field.name: field for field in BATCH if field.name not in ONLY_PIPELINE}
    for name in avro.names("added"):
        if name not in _IN_ORDER:
            fields |= {field.name: field for field in avro.arrow_schema(avro.load(name))}
    return pa.schema([*fields.values(), *(field for field in own if field.metadata != _REMEMBERING)])


def own_columns(page: Page, node: yaml.Node | None) -> pa.Schema:
    """Return the columns that the transforms of a section `transforms:` add; imports the users' modules.

    What is wrong with an entry is for config.transforms.read_transforms to say, but for a transform that is not there:
    without it nobody knows the columns.
    """
    fields: dict[str, pa.Field] = {}
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        named = {name.value: value for name, value in item.value} if isinstance(item, yaml.MappingNode) else {}
        use = named.get("use")
        if not isinstance(use, yaml.ScalarNode):
            continue
        try:
            target = find(use.value.strip())
            kind = kind_of(target)
            added = fields_of(members_of(target).adds) if kind else ()
        except NotFoundError as error:
            page.wrong(use, f"transforms: use: {error}")
        except TypeError:
            continue
        else:
            marked = [field.with_metadata(_REMEMBERING) for field in added] if kind == "user" else added
            fields |= {field.name: field for field in (*marked, ERRORS)}
    return pa.schema(list(fields.values()))
