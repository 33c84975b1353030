-- The chosen rows of an hourly table, told by buckets of $fine_s seconds in place of hours.
(
    SELECT * REPLACE (
        CASE WHEN $by_hour THEN partition_hour ELSE time_bucket(to_seconds($fine_s), available_at) END AS partition_hour
    )
    FROM read_parquet($table)
    WHERE {{window}} AND {{of_recordings}}
)
