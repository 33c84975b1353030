-- $sweeps: the newest look at each hour: what the source had, beside what became of it here.
SELECT partition_hour, swept_at, at_source, judged, in_the_works, not_recorded, given_up, missing, found_by_sweep
FROM read_parquet($sweeps)
QUALIFY row_number() OVER (PARTITION BY partition_hour ORDER BY swept_at DESC) = 1
