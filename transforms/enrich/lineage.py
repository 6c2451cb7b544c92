"""Lineage: each row says what it was made with: the configuration, and the versions of packages and databases."""

import dataclasses
import hashlib
from collections.abc import Mapping

import msgspec
import pyarrow as pa
import yaml

from millrace.transforms.enrich.enrichment import declared, version_of
from millrace.transforms.steps import Applied, Step, Users, with_columns

HASH_CHARACTERS = 16


def config_hash(sections: Mapping[str, yaml.Node]) -> str:
    r"""Return the hash of a configuration by section: of what it says, not of how it is written.

    >>> one, other = (yaml.compose(text) for text in ("{a: 1, b: [x]}", "b: ['x']  # why\\na: 1"))
    >>> config_hash({"enrich": one}) == config_hash({"enrich": other})
    True
    """
    content = msgspec.json.encode({name: _plain(node) for name, node in sections.items()}, order="sorted")
    return hashlib.sha256(content).hexdigest()[:HASH_CHARACTERS]


def _plain(node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return {_plain_text(name): _plain(value) for name, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return _plain_text(node)


def _plain_text(node: yaml.Node) -> str:
    return str(node.value)


@dataclasses.dataclass(frozen=True)
class Lineage(Step):
    """Append `config_hash` and `lineage` (JSON: package or database to version).

    Args:
        hash: of the job's configuration.
        steps: whose versions it tells.
    """

    name = "lineage"
    adds = declared("lineage")

    hash: str
    steps: tuple[Step, ...] = ()

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:  # noqa: ARG002
        """Append the columns: one text for the whole batch."""
        versions = {"millrace": version_of("millrace")}
        for step in self.steps:
            versions |= step.versions()
        text = msgspec.json.encode(versions, order="sorted").decode()
        columns = [pa.repeat(pa.scalar(value, pa.string()), batch.num_rows) for value in (self.hash, text)]
        return Applied(with_columns(batch, self.adds, columns))
