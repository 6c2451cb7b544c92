"""The spool's calls to the operating system: tests put a disk that fails, or loses power, in their place."""

import contextlib
import fcntl
import os
from pathlib import Path


class Disk:
    """The real one. Every call raises OSError."""

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder; none where there is no such folder."""
        try:
            return [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            return []

    def make_folder(self, folder: Path) -> None:
        """Make a folder, and those above it, durably; one that is there is fine."""
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in the folder are on disk."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def create(self, path: Path) -> int:
        """Make a file that is not there yet, open for writing. Only its owner may read it: it holds user data."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, descriptor: int, data: bytes, at: int) -> int:
        """Write from a place on; return how many bytes were taken, which may be fewer."""
        return os.pwrite(descriptor, data, at)

    def sync(self, descriptor: int) -> None:
        """Wait until the file is on disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file, or let go of a lock."""
        os.close(descriptor)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file off."""
        os.truncate(path, size)

    def read(self, path: Path, start: int, size: int) -> bytes:
        """Read up to size bytes from a place on."""
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            parts: list[bytes] = []
            while size > 0 and (part := file.read(size)):
                parts.append(part)
                size -= len(part)
            return b"".join(parts)

    def size(self, path: Path) -> int:
        """Return a file's length in bytes."""
        return path.stat().st_size

    def remove(self, path: Path) -> None:
        """Remove a file; one that is gone is fine."""
        path.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder that is empty; one that is gone is fine."""
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()

    def lock(self, path: Path) -> int | None:
        """Take the lock of a file, made where there is none; None where another has it. It ends with its process."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # else its last owner removed it just now
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None
