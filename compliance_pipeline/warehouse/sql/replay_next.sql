-- What to judge again: at most $size of the hour's, by id after $after (of $only, where given), that $policy has not judged.
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT *, row_number() OVER () AS n
FROM (
    FROM screenings
    WHERE partition_hour = $hour AND engine_version = $engine
        AND recording_id > $after AND ($only IS NULL OR recording_id IN (SELECT unnest($only::VARCHAR[])))
        AND recording_id NOT IN (
            SELECT recording_id FROM verdicts
            WHERE partition_hour = $hour AND engine_version = $engine AND policy_version = $policy
        )
    ORDER BY recording_id LIMIT $size
)
