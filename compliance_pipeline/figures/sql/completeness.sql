-- What the source said of each hour when it was asked last, beside what became of it here.
SELECT
    partition_hour AS hour, swept_at, at_source, judged, in_the_works, not_recorded, given_up, missing, found_by_sweep
FROM read_parquet($completeness)
WHERE partition_hour >= $start AND partition_hour < $end
ORDER BY hour
