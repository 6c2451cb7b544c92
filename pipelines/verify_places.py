"""How rows become accounts: the SQL of verify_sources.py.

`found` has the places of a slice, `pending` the messages that collectors noted and that no slice has had yet.
"""

from millrace.pipelines.verify_accepted import HOUR_US

# A record leaves by one door. What a transform made of an event shares its place and has an id of its own,
# ID/TRANSFORM/NUMBER; where these left by several doors the event counts as archived, else by the first of SPECS.
PLACES = """
    CREATE OR REPLACE TABLE places AS
    SELECT envelope_id, envelope_index, min(door) AS door, count(*) AS times, any_value(source_id) AS source,
           any_value(published_us) AS published_us
    FROM found GROUP BY envelope_id, envelope_index
"""
# A letter without an index stands for all that the message held.
ENVELOPES = """
    CREATE OR REPLACE TABLE envelopes AS
    SELECT envelope_id, any_value(source) AS source, any_value(published_us) AS published_us, count(*) AS places,
           bool_or(envelope_index < 0) AS whole, max(envelope_index) AS last,
           count(*) FILTER (door = 0) AS archive, count(*) FILTER (door = 1) AS duplicates,
           count(*) FILTER (door = 2) AS dead_letters, count(*) FILTER (door = 3) AS dropped
    FROM places GROUP BY envelope_id
"""
MATCHED = """
    CREATE OR REPLACE TABLE matched AS
    SELECT pending.envelope_id, pending.source, hour_us, events, at_us, places, whole, last, archive, duplicates,
           CASE WHEN whole THEN events ELSE dead_letters END AS dead_letters, dropped,
           CASE WHEN whole THEN 0 ELSE greatest(events - places, 0) END AS absent
    FROM pending JOIN envelopes USING (envelope_id)
"""
LEFT = """
    CREATE OR REPLACE TABLE left_over AS SELECT * FROM pending ANTI JOIN envelopes USING (envelope_id);
    DROP TABLE pending;
    ALTER TABLE left_over RENAME TO pending;
"""
SUMS = """
    SELECT source, hour_us, sum(events), sum(archive), sum(duplicates), sum(dead_letters), sum(dropped)
    FROM matched GROUP BY ALL
"""
OTHERS = f"""
    SELECT source, published_us // {HOUR_US} * {HOUR_US}, sum(archive), sum(duplicates),
           sum(dead_letters), sum(dropped)
    FROM envelopes ANTI JOIN matched USING (envelope_id) GROUP BY ALL
"""  # noqa: S608  constants
# Which indices lack: few messages have some, and lack others.
ABSENT = """
    SELECT envelope_id, index, source, hour_us, at_us
    FROM (SELECT *, unnest(range(events)) AS index FROM matched WHERE absent > 0) AS wanted
    ANTI JOIN (SELECT envelope_id, envelope_index AS index FROM places) AS there USING (envelope_id, index)
"""
UNFORESEEN = """
    SELECT envelope_id, envelope_index, source, at_us FROM places JOIN (
        SELECT envelope_id, events, at_us FROM matched WHERE last >= events
    ) USING (envelope_id) WHERE envelope_index >= events
"""
SUSPECTS = """
    CREATE OR REPLACE TABLE suspects AS
    SELECT envelope_id FROM places WHERE times > 1
    UNION SELECT envelope_id FROM envelopes WHERE whole AND places > 1
"""
REPEATED = """
    SELECT envelope_id, envelope_index, any_value(source_id), min(published_us), list(DISTINCT door ORDER BY door)
    FROM (SELECT *, id IS NOT NULL AND regexp_matches(id, '/[^/]+/[1-9][0-9]*$') AS made,
                 count(*) OVER (PARTITION BY envelope_id, envelope_index, id) AS same
          FROM details)
    GROUP BY envelope_id, envelope_index
    HAVING count(*) FILTER (NOT made) > 1 OR max(same) FILTER (id IS NOT NULL) > 1
    UNION ALL
    SELECT envelope_id, -1, any_value(source_id), min(published_us), [2]
    FROM details GROUP BY envelope_id HAVING min(envelope_index) < 0 AND max(envelope_index) >= 0
"""

ID = "json_extract_string(decode(payload), '$.messageId')"
"""A dead letter of a step is an event, with its id."""
