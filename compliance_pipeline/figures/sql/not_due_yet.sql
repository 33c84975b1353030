-- $data_to, $objective_s, $objectives: violating recordings not flagged that may still be in time, by when they came.
SELECT available_at AS at, partition_hour AS hour, count(*) AS recordings
FROM read_parquet($interactions)
LEFT JOIN (SELECT unnest($objectives, recursive := true)) o USING (channel)
WHERE partition_hour >= $start AND partition_hour < $end AND {{of_recordings}}
  AND verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED') AND flagged_s IS NULL
  AND available_at >= $data_to - to_seconds(coalesce(o.seconds, $objective_s))
GROUP BY ALL
