"""Settings of a sink that name a secret."""

from millrace.config.secrets import SecretError, SecretReference
from millrace.sinks.sink import CannotOpenSinkError


def is_reference(text: str) -> bool:
    """Say whether a setting names a secret, and does not hold a value itself.

    >>> is_reference("env:PGPASSWORD"), is_reference("postgresql://app@db/events")
    (True, False)
    """
    try:
        SecretReference.parse(text)
    except ValueError:
        return False
    return True


def resolved(reference: str) -> str:
    """Return the secret, as text.

    Raises:
        CannotOpenSinkError: it is not there, or is no text.
    """
    try:
        return SecretReference.parse(reference).resolve().reveal().decode()
    except SecretError as error:
        raise CannotOpenSinkError(str(error)) from None
    except UnicodeDecodeError:
        raise CannotOpenSinkError(f"the secret {reference} is no text in UTF-8") from None
