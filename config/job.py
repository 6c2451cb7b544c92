"""What `millrace.yaml` says of the job: the sections beside the sources, each read by the module of its stage.

A section that is not there leaves its stage out, or at its defaults.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from millrace.config.transforms import read_transforms
from millrace.config.yaml_page import Mistake, Page
from millrace.transforms.steps import Step

Reader = Callable[[Page, yaml.Node], Any]


class ConfigError(Exception):
    """A file has mistakes. Its text has a line for each: `FILE:LINE: what is wrong; what to do`."""

    def __init__(self, path: str, mistakes: Sequence[Mistake]) -> None:
        self.path = path
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line or 0))
        super().__init__(
            "\n".join(f"{path}:{line}: {text}" if line else f"{path}: {text}" for line, text in self.mistakes)
        )


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """What the stages do; each field is named as its section."""

    enrich: tuple[Step, ...] = ()
    transforms: tuple[Step, ...] = ()

    @property
    def added(self) -> tuple[pa.Field, ...]:
        """The columns that the stages add to the archive, in their order."""
        return tuple(field for step in (*self.enrich, *self.transforms) for field in step.adds)


READERS: dict[str, Reader] = {"transforms": read_transforms}
"""Who reads which of `sections.SECTIONS`: gives the value of JobConfig's field of that name, notes mistakes."""


def read_job(text: str, path: str) -> JobConfig:
    """Read the job's sections of a file's text; the others (the sources) are the collector's to read.

    Raises:
        ConfigError: it has mistakes: all of them, each with its line.
    """
    page = Page(text)
    found: dict[str, Any] = {}
    if page.root is not None:
        for name, value in page.pairs(page.root, "the file"):
            if name.value in READERS:
                found[name.value] = READERS[name.value](page, value)
    if page.mistakes:
        raise ConfigError(path, page.mistakes)
    config = JobConfig(**found)
    ours = {step.name for step in config.enrich}  # memory and metrics hang on the names of both
    taken = [step.name for step in config.transforms if step.name in ours]
    if taken:
        text = "transforms: %s is the name of an enrichment; give yours another `name`"
        raise ConfigError(path, [Mistake(None, text % name) for name in taken])
    return config


def load_job(path: str) -> JobConfig:
    """Read a file; the empty path means no file: every stage at its defaults.

    Raises:
        ConfigError: the file cannot be read or has mistakes: all of them, each with its line.
    """
    if not path:
        return JobConfig()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(path, [Mistake(None, f"cannot be read: {error}")]) from error
    return read_job(text, path)
