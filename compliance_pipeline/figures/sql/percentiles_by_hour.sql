-- As percentiles_by_bucket.sql, of whole hours and at most one value of one dimension.
SELECT stage, epoch_ms(partition_hour) // 1000 AS time, recordings, seconds
FROM read_parquet($percentiles)
WHERE {{hours}} AND dimension = $dimension AND (len($values) = 0 OR list_contains($values, value))
