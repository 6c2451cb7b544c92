"""Unfit: messages that Pub/Sub will never take, kept in files of their own where a person finds them."""

import base64
import hashlib
import os
from pathlib import Path

import msgspec

from millrace.collector.message import Message


class UnfitFolder:
    """A folder of files `unfit-<digest>.json`, a message and Pub/Sub's reason in each; processes may share it.

    `{"why": ..., "attributes": {...}, "body": <base64>}`: the body as the client sent it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, message: Message, why: str) -> Path:
        """Return when the message is on disk, in the returned file; the same message again is the same file.

        Raises:
            OSError: it is not.
        """
        body = base64.b64encode(message.body).decode()
        content = msgspec.json.encode(
            {"why": why, "attributes": dict(message.attributes), "body": body}, order="sorted"
        )
        digest = hashlib.sha256(msgspec.json.encode([message.attributes, body], order="sorted")).hexdigest()[:32]
        path = self._folder / f"unfit-{digest}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}.tmp")
        with written.open("wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
        for folder in (self._folder, self._folder.parent):
            _sync_folder(folder)
        return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
