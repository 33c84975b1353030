-- $dimension ('all', or the only one chosen), $values (empty: all): the window's histogram; of the UTC days in
-- [$first, $last) by day, else by hour.
(
    SELECT partition_hour, stage, bucket, recordings FROM read_parquet($latency_days)
    WHERE partition_hour >= $first AND partition_hour < $last
      AND dimension = $dimension AND (len($values) = 0 OR list_contains($values, value))
    UNION ALL
    SELECT partition_hour, stage, bucket, recordings FROM read_parquet($latency)
    WHERE partition_hour >= $start AND partition_hour < $first
      AND dimension = $dimension AND (len($values) = 0 OR list_contains($values, value))
    UNION ALL
    SELECT partition_hour, stage, bucket, recordings FROM read_parquet($latency)
    WHERE partition_hour >= $last AND partition_hour < $end
      AND dimension = $dimension AND (len($values) = 0 OR list_contains($values, value))
)
