-- $at, $id, $after_rule (all NULL: from the newest on), $most: the newest violations before that one.
SELECT {{row}}
FROM read_parquet($violations)
WHERE {{window}} AND {{of_recordings}} AND {{of_violations}}
  AND ($at::TIMESTAMPTZ IS NULL
       OR (available_at, recording_id, rule_id) < ($at::TIMESTAMPTZ, $id::VARCHAR, $after_rule::VARCHAR))
ORDER BY available_at DESC, recording_id DESC, rule_id DESC
LIMIT $most
