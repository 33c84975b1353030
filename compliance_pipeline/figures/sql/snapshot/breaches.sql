-- $interactions, $objective_s, $objectives: recordings flagged late, by the stage that took longest from available on.
SELECT
    partition_hour, queue, channel, direction, coalesce(policy_version, '') AS policy_version,
    longest.stage AS stage,
    count(*) AS recordings
FROM (
    SELECT
        *,
        list_reduce([
            {'stage': 'delivery', 'seconds': coalesce(delivery_s, 0)}, {'stage': 'queue', 'seconds': coalesce(queue_s, 0)},
            {'stage': 'start', 'seconds': coalesce(start_s, 0)}, {'stage': 'batch', 'seconds': coalesce(batch_s, 0)},
            {'stage': 'fetch', 'seconds': coalesce(fetch_s, 0)}, {'stage': 'analysis', 'seconds': coalesce(analysis_s, 0)},
            {'stage': 'remediation', 'seconds': coalesce(remediation_s, 0)}
        ], lambda a, b: CASE WHEN b.seconds > a.seconds THEN b ELSE a END) AS longest
    FROM read_parquet($interactions)
    WHERE flagged_s IS NOT NULL
)
LEFT JOIN (SELECT unnest($objectives, recursive := true)) o USING (channel)
WHERE flagged_s > coalesce(o.seconds, $objective_s)
GROUP BY ALL
