-- $until, $data_to, $lengths (seconds), $objective_s, $objectives: of the time before $until, what was due, and late.
SELECT
    length,
    count(*) FILTER (flagged_s IS NOT NULL OR available_at < $data_to - to_seconds(within_s)) AS due,
    count(*) FILTER (coalesce(flagged_s > within_s, available_at < $data_to - to_seconds(within_s))) AS late
FROM (
    SELECT available_at, flagged_s, coalesce(o.seconds, $objective_s) AS within_s
    FROM read_parquet($interactions)
    LEFT JOIN (SELECT unnest($objectives, recursive := true)) o USING (channel)
    WHERE {{window}} AND {{of_recordings}}
      AND (flagged_s IS NOT NULL OR verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED'))
) JOIN (SELECT unnest($lengths) AS length) ON available_at >= $until - to_seconds(length)
GROUP BY length
