"""What `millrace.yaml` says of the job: the sections beside the sources, each read by the module of its stage.

A section that is not there leaves its stage out, or at its defaults.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import yaml

from millrace.config.contracts import read_contracts
from millrace.config.enrich import read_enrich
from millrace.config.identity import read_identity
from millrace.config.privacy import Privacy, read_privacy
from millrace.config.sessions import read_sessions
from millrace.config.touch import read_touch
from millrace.config.transforms import read_transforms
from millrace.config.yaml_page import Mistake, MistakesError, Page, text_of
from millrace.schemas.contracts import ADDED, Contracts
from millrace.schemas.identity import LINKED_AT
from millrace.transforms.enrich.lineage import Lineage, config_hash
from millrace.transforms.enrich.sessions import Sessions
from millrace.transforms.enrich.touch import Touch
from millrace.transforms.link import LinkRule
from millrace.transforms.steps import Step

Reader = Callable[[Page, yaml.Node], Any]


class ConfigError(MistakesError):
    """The job's sections have mistakes."""


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """What the stages do; each field is named as its section, but for the lineage, which follows from all of them."""

    privacy: Privacy | None = None
    contracts: Contracts | None = None
    identity: LinkRule | None = None
    enrich: tuple[Step, ...] = ()
    sessions: Sessions | None = None
    touch: Touch | None = None
    lineage: Lineage | None = None
    transforms: tuple[Step, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """What EnrichEvents does, in its order: enrichments, sessions, touch, lineage."""
        return (*self.enrich, *(step for step in (self.sessions, self.touch, self.lineage) if step is not None))

    @property
    def added(self) -> tuple[pa.Field, ...]:
        """The columns that the stages add to the archive, in their order."""
        of_privacy = () if self.privacy is None else self.privacy.adds
        of_contracts = () if self.contracts is None else ADDED
        of_identity = () if self.identity is None else (LINKED_AT,)
        of_steps = (field for step in (*self.steps, *self.transforms) for field in step.adds)
        return (*of_privacy, *of_contracts, *of_identity, *of_steps)


READERS: dict[str, Reader] = {
    "privacy": read_privacy,
    "contracts": read_contracts,
    "identity": read_identity,
    "enrich": read_enrich,
    "sessions": read_sessions,
    "touch": read_touch,
    "transforms": read_transforms,
}
"""Who reads which of `sections.SECTIONS`: gives the value of JobConfig's field of that name, notes mistakes."""


def read_job(text: str, path: str) -> JobConfig:
    """Read the job's sections of a file's text; the others (the sources) are the collector's to read.

    Raises:
        ConfigError: it has mistakes: all of them, each with its line.
    """
    page = Page(text)
    found: dict[str, Any] = {}
    sections: dict[str, yaml.Node] = {}
    if page.root is not None:
        for name, value in page.pairs(page.root, "the file"):
            if name.value in READERS:
                sections[name.value] = value
                found[name.value] = READERS[name.value](page, value)
    if page.mistakes:
        raise ConfigError(path, page.mistakes)
    config = JobConfig(**found)
    ours = {step.name for step in config.steps}  # memory and metrics hang on the names of both
    taken = [step.name for step in config.transforms if step.name in ours]
    if taken:
        text = "transforms: %s is the name of an enrichment; give yours another `name`"
        raise ConfigError(path, [Mistake(None, text % name) for name in taken])
    if not sections:
        return config
    lineage = Lineage(config_hash(sections), (*config.steps, *config.transforms))
    return dataclasses.replace(config, lineage=lineage)


def load_job(path: str) -> JobConfig:
    """Read a file; the empty path means no file: every stage at its defaults.

    Raises:
        ConfigError: the file cannot be read or has mistakes: all of them, each with its line.
    """
    if not path:
        return JobConfig()
    return read_job(text_of(path, ConfigError), path)
