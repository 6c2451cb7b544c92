"""Find: a user's transform by `module:Name`, or by the name of an entry point of their package."""

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

GROUP = "millrace.transforms"
"""The group of entry points in which packages offer transforms."""


class NotFoundError(Exception):
    """There is no such transform. One sentence that says what to do."""


def find(use: str) -> Any:
    """Return the class or function; modules are looked for among what is installed, then in the current folder.

    Raises:
        NotFoundError: it cannot be imported.
    """
    module, colon, name = use.partition(":")
    if not colon:
        offered = importlib.metadata.entry_points(group=GROUP)
        if use not in offered.names:
            names = ", ".join(sorted(offered.names)) or "none is installed"
            raise NotFoundError(f"{use!r} is no entry point in {GROUP} ({names}); write module:Name, or install it")
        module, _, name = offered[use].value.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last: what is installed comes first, as everywhere
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise NotFoundError(
                f"there is no module {module!r}; install its package, or start where the file is"
            ) from error
        raise NotFoundError(f"{module} needs the module {error.name!r}, which is not installed; install it") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise NotFoundError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise NotFoundError(f"{module} has no {name!r}; it has {_public(found)}")
        found = getattr(found, part)
    return found


def _public(module: Any) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    return ", ".join(names) or "nothing of its own"
