-- By hour: of which rule it could not be decided, in how many recordings.
SELECT date_trunc('hour', partition_hour) AS hour, rule_id, sum(recordings)::BIGINT AS recordings
FROM {{undetermined}}
GROUP BY ALL
