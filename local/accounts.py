"""Accounts: whether everything that the sample traffic was told is kept is in the tables, once."""

from pathlib import Path
from typing import NamedTuple

import duckdb

_SHOWN = 5  # of what does not fit; one is enough to look into

_JOURNAL = """
    CREATE OR REPLACE TEMP TABLE journal AS
    SELECT kind, name, sum(answered)::BIGINT AS answered
    FROM read_csv(?, header = true, columns = {'kind': 'VARCHAR', 'name': 'VARCHAR', 'answered': 'BIGINT'})
    GROUP BY ALL
"""
# An event that bears another's id is archived under a derived one, and says whose it bore.
_OWN_ID = "coalesce(duplicate_of, message_id)"
_DOOR = "CASE WHEN duplicate_of IS NULL THEN 'archive' ELSE 'synthetic' END"
# What decode refuses is known by its bytes, as it came; what a later stage refuses is an event again, with its id.
_LATER = "reason IN ('contract_violated', 'transform_failed')"
_RECORDED = """
    CREATE OR REPLACE TEMP TABLE recorded AS
    SELECT kind, name, count(*) AS found, count(*) FILTER (door = 'archive') AS archived,
           count(*) FILTER (door = 'synthetic') AS synthetic,
           count(*) FILTER (door = 'duplicates') AS duplicates,
           count(*) FILTER (door = 'dead_letters') AS dead_letters, count(*) FILTER (door = 'dropped') AS dropped
    FROM (SELECT 'event' AS kind, {own_id} AS name, {door} AS door FROM archive
          UNION ALL SELECT 'event', message_id, 'duplicates' FROM duplicates
          UNION ALL SELECT 'event', message_id, 'dropped' FROM dropped
          UNION ALL SELECT 'event', json_extract_string(decode(payload), '$.messageId'), 'dead_letters'
                    FROM dead_letters WHERE {later}
          UNION ALL SELECT 'letter', sha256(payload), 'dead_letters' FROM dead_letters WHERE NOT {later})
    GROUP BY ALL
"""
_SUMS = """
    SELECT coalesce(sum(answered), 0), coalesce(sum(archived + synthetic), 0), coalesce(sum(duplicates), 0),
           coalesce(sum(dead_letters), 0), coalesce(sum(dropped), 0)
    FROM journal LEFT JOIN recorded USING (kind, name) WHERE answered > 0
"""
# More than was answered is no fault: a request whose answer got lost is sent again. But the archive has it once.
_DIFFERING = """
    SELECT kind, name, answered, coalesce(found, 0), coalesce(archived, 0)
    FROM journal LEFT JOIN recorded USING (kind, name)
    WHERE coalesce(found, 0) < answered
       OR (kind = 'event' AND coalesce(archived, 0) != least(coalesce(found, 0), 1)
           AND coalesce(dropped, 0) = 0 AND coalesce(dead_letters, 0) = 0)
    ORDER BY ALL LIMIT 20
"""
_UNANSWERED = """
    SELECT count(*), count(recorded.found) FROM journal LEFT JOIN recorded USING (kind, name) WHERE answered = 0
"""
_OTHERS = "SELECT coalesce(sum(found), 0) FROM recorded ANTI JOIN journal USING (kind, name)"
_DOUBLED = """
    SELECT envelope_id, envelope_index, count(*)
    FROM (SELECT envelope_id, envelope_index FROM archive
          UNION ALL SELECT envelope_id, envelope_index FROM duplicates
          UNION ALL SELECT envelope_id, envelope_index FROM dead_letters
          UNION ALL SELECT envelope_id, envelope_index FROM dropped)
    GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 20
"""


class Accounts(NamedTuple):
    """What was answered against what is recorded, in records."""

    answered: int
    """Sent, and answered that it is kept; what was sent and answered twice counts twice."""
    archived: int
    duplicates: int
    dead_letters: int
    dropped: int
    differing: list[tuple[str, str, int, int, int]]
    """Records that are not as they must be: kind, name, times answered, found in all tables, found in the archive."""
    doubled: list[tuple[str, int, int]]
    """Places in the queue that are recorded more than once: envelope_id, envelope_index, how often."""
    unanswered: int
    """Different records that were sent, and never answered."""
    unanswered_found: int
    others: int
    """Recorded, and never sent by the sample traffic."""

    @property
    def closes(self) -> bool:
        """Whether each answered record is in the tables as often as it was answered, in the archive just once."""
        return not self.differing and not self.doubled

    @property
    def sent_again(self) -> int:
        """Copies made on the way: by whoever sent again what was kept, its answer lost."""
        return self.archived + self.duplicates + self.dead_letters + self.dropped - self.answered


def accounts(connection: duckdb.DuckDBPyConnection, journal: Path) -> Accounts:
    """Compare a journal (millrace.local.journal) with the tables that a connection (millrace.local.summary) sees."""
    connection.execute(_JOURNAL, [str(journal)])
    flagged = any(column == "duplicate_of" for column, *_ in connection.execute("DESCRIBE archive").fetchall())
    own_id, door = (_OWN_ID, _DOOR) if flagged else ("message_id", "'archive'")  # without deduplication
    connection.execute(_RECORDED.format(own_id=own_id, door=door, later=_LATER))
    rows = [connection.execute(query).fetchall() for query in (_SUMS, _DIFFERING, _DOUBLED, _UNANSWERED, _OTHERS)]
    (sums,), differing, doubled, ((unanswered, found),), ((others,),) = rows
    answered, archived, duplicates, dead_letters, dropped = map(int, sums)
    return Accounts(
        answered, archived, duplicates, dead_letters, dropped, differing, doubled, unanswered, found, int(others)
    )


def closing(found: Accounts) -> str:
    """Say it in words: one line where the accounts close, else what does not fit."""
    sums = (
        f"collected {found.answered:,} = archived {found.archived:,} + duplicates {found.duplicates:,} + "
        f"dead letters {found.dead_letters:,}"
    )
    if found.dropped:
        sums += f" + dropped {found.dropped:,}"
    if found.sent_again > 0:
        sums += f" - sent again on the way {found.sent_again:,}"
    notes = f" Other senders: {found.others:,} events." if found.others else ""
    if found.unanswered:
        notes += f" Never answered: {found.unanswered:,}, of which {found.unanswered_found:,} were kept."
    if found.closes:
        return f"The accounting closes: {sums}.{notes}"
    lines = [f"The accounting does NOT close: {sums.replace(' = ', ' against ')}.{notes}"]
    wrong = [
        f"  {kind} {name}: answered {answered} times, found {seen}, {archived} of them in the archive"
        for kind, name, answered, seen, archived in found.differing
    ]
    wrong += [f"  record {index} of envelope {id_}: recorded {times} times" for id_, index, times in found.doubled]
    return "\n".join([*lines, *wrong[:_SHOWN], *(["  and more"] if len(wrong) > _SHOWN else [])])
