-- Leave out of `judged` what was not screened when `chosen` says: meanwhile it was screened anew.
DELETE FROM judged WHERE recording_id NOT IN (
    SELECT c.recording_id
    FROM chosen c
    JOIN screenings s ON s.recording_id = c.recording_id AND s.screened_at IS NOT DISTINCT FROM c.screened_at
    WHERE s.partition_hour = $hour AND s.engine_version = $engine
)
