"""Resource names, by Google's rules.

Source: https://docs.cloud.google.com/pubsub/docs/pubsub-basics#resource_names, and what Google's emulator answers.
"""

import re

from millrace.broker.errors import invalid

DELETED_TOPIC = "_deleted-topic_"

_ID = r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}"
_PROJECT = re.compile(r"projects/[^/]+")
_FORMS = {kind: re.compile(rf"projects/[^/]+/{kind}/{_ID}") for kind in ("topics", "subscriptions", "snapshots")}


def topic_name(name: str) -> str:
    """Return the name, or raise Refused (INVALID_ARGUMENT).

    >>> topic_name("projects/shop/topics/events")
    'projects/shop/topics/events'
    """
    return _checked("topics", name)


def subscription_name(name: str) -> str:
    """Return the name, or raise Refused (INVALID_ARGUMENT)."""
    return _checked("subscriptions", name)


def snapshot_name(name: str) -> str:
    """Return the name, or raise Refused (INVALID_ARGUMENT)."""
    return _checked("snapshots", name)


def project_prefix(project: str) -> str:
    """Return `projects/NAME/`, under which a project's resources are listed, or raise Refused."""
    if not _PROJECT.fullmatch(project):
        raise invalid(f"Invalid [projects] name: (name={project})")
    return f"{project}/"


def project_of(name: str) -> str:
    """Return the project's id in a resource name that was already checked.

    >>> project_of("projects/shop/topics/events")
    'shop'
    """
    return name.split("/", 2)[1]


def _checked(kind: str, name: str) -> str:
    if not _FORMS[kind].fullmatch(name):
        raise invalid(f"Invalid [{kind}] name: (name={name})")
    return name
