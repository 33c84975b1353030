-- Of the hour's recordings (of $only, where given): those with a verdict of $policy on a screening by $engine, those with
-- such a screening alone, and those without.
WITH screened AS (
    SELECT recording_id FROM screenings WHERE partition_hour = $hour AND engine_version = $engine
), judged AS (
    SELECT recording_id FROM verdicts
    WHERE partition_hour = $hour AND engine_version = $engine AND policy_version = $policy
), marked AS (
    SELECT recording_id IN (FROM screened) AS is_screened, recording_id IN (FROM judged) AS is_judged
    FROM (SELECT recording_id FROM recordings WHERE partition_hour = $hour UNION FROM screened)
    WHERE $only IS NULL OR recording_id IN (SELECT unnest($only::VARCHAR[]))
)
SELECT
    count(*) FILTER (is_screened AND is_judged) AS known,
    count(*) FILTER (is_screened AND NOT is_judged) AS to_judge,
    count(*) FILTER (NOT is_screened) AS without_screening
FROM marked
