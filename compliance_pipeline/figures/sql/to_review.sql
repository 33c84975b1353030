-- $of: a severity. $most, $skip: its open violations, the oldest first.
SELECT {{row}}
FROM read_parquet($violations)
WHERE {{window}} AND {{of_recordings}} AND {{of_violations}} AND severity = $of
ORDER BY available_at, recording_id, rule_id
LIMIT $most OFFSET $skip
