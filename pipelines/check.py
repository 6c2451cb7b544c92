"""Checks before the start: what would fail later, said now, in one line that says what to do."""

import os
import re
from collections.abc import Sequence

import apache_beam as beam
import grpc
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from google.auth.exceptions import GoogleAuthError

from millrace.config.job import JobConfig
from millrace.config.privacy import Privacy
from millrace.config.secrets import SecretError
from millrace.pipelines.options import EventOptions, problem_with, problem_with_arguments
from millrace.sinks.identities import recall_links
from millrace.sinks.job_tables import Tables, committer, open_tables
from millrace.sinks.recall import recall_events, recall_steps
from millrace.transforms.deduplicate import remembered_here
from millrace.transforms.protection import Protection
from millrace.transforms.pubsub import SubscriptionClient, open_channel
from millrace.transforms.steps import CannotOpenError
from millrace.transforms.suppression import SuppressionError

_NAME = re.compile(
    # Any project: emulators take short ones, and old companies' have a domain in front. Pub/Sub knows which exist.
    r"projects/(?P<project>[^/\s]+)/subscriptions/(?P<name>[A-Za-z][\w.~+%-]{2,254})",
    re.ASCII,
)


class CannotStartError(Exception):
    """The job cannot start; the message is one line that says what to do."""


def arguments(given: Sequence[str]) -> None:
    """Check that all arguments are known and can be read.

    Raises:
        CannotStartError: one is not.
    """
    if problem := problem_with_arguments(given):
        raise CannotStartError(problem)


def options(given: EventOptions) -> None:
    """Check that the values of the options are of use.

    Raises:
        CannotStartError: one is not.
    """
    if problem := problem_with(given):
        raise CannotStartError(problem)


def subscription(name: str | None) -> None:
    """Check that the subscription can be read.

    Raises:
        CannotStartError: it has no valid name, does not exist, may not be read, or Pub/Sub does not answer.
    """
    if not name:
        raise CannotStartError("--subscription is missing: give projects/PROJECT/subscriptions/NAME.")
    match = _NAME.fullmatch(name)
    if match is None:
        raise CannotStartError(f"--subscription={name} is no subscription: write projects/PROJECT/subscriptions/NAME.")
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
    where = f"the emulator at {emulator} (PUBSUB_EMULATOR_HOST)" if emulator else "Google Pub/Sub"
    try:
        client = SubscriptionClient(open_channel(), name)
        try:
            client.ack_deadline_s()
        finally:
            client.close()
    except GoogleAuthError as error:
        raise CannotStartError(
            f"no Google credentials ({_first_line(error)}): run `gcloud auth application-default login`, or set "
            "PUBSUB_EMULATOR_HOST for a local broker."
        ) from error
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.NOT_FOUND:
            raise CannotStartError(
                f"{name} does not exist at {where}: create it (gcloud pubsub subscriptions create {match['name']} "
                f"--project={match['project']} --topic=TOPIC), or correct the project or name."
            ) from error
        if code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
            raise CannotStartError(
                f"{where} refuses access to {name}: give this account roles/pubsub.subscriber and roles/pubsub.viewer."
            ) from error
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
            raise CannotStartError(
                f"cannot reach {where}: is it running, and is the address right? ({_first_line(error.details())})"
            ) from error
        raise CannotStartError(f"{where} cannot read {name}: {code.name}: {_first_line(error.details())}") from error


def shared(tables_: Tables) -> None:
    """Check that the tables are where the workers of a cluster share them, not on the disk of each.

    Raises:
        CannotStartError: one is not.
    """
    for name in ("archive", "duplicates", "dead_letters", "dropped", "identities"):
        uri = getattr(tables_, name)
        if not uri.startswith("gs://"):
            raise CannotStartError(
                f"--{name}={uri} is on one machine's disk, and Dataflow's workers share none: give gs://BUCKET/FOLDER."
            )


def steps(config: JobConfig) -> None:
    """Check, where the job runs in this process, that its steps have what they need, as the copies that it will run.

    Raises:
        CannotStartError: one has not.
    """
    for step in (*config.steps, *config.transforms):
        try:
            pickler.loads(pickler.dumps(step)).open()
        except CannotOpenError as error:
            raise CannotStartError(str(error)) from error


def tables(tables_: Tables, config: JobConfig, options_: EventOptions) -> None:
    """Open the job's tables: creates them, and on one node reads back recent ids, and what the stages remember.

    Raises:
        StorageError: one cannot be opened; the message says what to do.
    """
    if tables_.alone:
        committer(tables_)
        if config.identity is not None:
            recall_links(tables_, config.identity)
        recall_steps(tables_, [*config.steps, *config.transforms], options_.shards)
        if horizon_s := options_.dedup_horizon_s:
            remembered = remembered_here(tables_.run_id, horizon_s, options_.dedup_max_ids)
            recall_events(tables_, remembered, horizon_s)
    else:
        open_tables(tables_)


def privacy(settings: Privacy | None) -> None:
    """Check, where the job runs in this process, that the secrets and lists that the settings name can be had.

    Raises:
        CannotStartError: one cannot.
    """
    if settings is None:
        return
    try:
        Protection(settings)
    except (SecretError, SuppressionError) as error:
        raise CannotStartError(f"{error}.") from None


def pipeline(given: PipelineOptions) -> beam.Pipeline:
    """Return an empty pipeline for a cluster's runner, once Beam finds nothing missing among its options.

    Raises:
        CannotStartError: something is.
    """
    try:
        return beam.Pipeline(options=given)
    except ValueError as error:  # says one thing a line
        _, _, missing = str(error).partition("\n")
        raise CannotStartError(f"{' '.join((missing or str(error)).split())} See Beam's options.") from error


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:200]
