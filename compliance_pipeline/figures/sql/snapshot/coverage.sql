-- $interactions, $objective_s: what became of the recordings of each hour, over all and by one dimension.
SELECT
    partition_hour,
    CASE WHEN grouping(queue) = 0 THEN 'queue' WHEN grouping(channel) = 0 THEN 'channel'
         WHEN grouping(direction) = 0 THEN 'direction' ELSE 'all' END AS dimension,
    coalesce(queue, channel, direction, '') AS value,
    count(*) AS received,
    count(*) FILTER (status = 'judged') AS judged,
    count(*) FILTER (status = 'unscreenable') AS unscreenable,
    count(*) FILTER (status = 'waiting') AS waiting,
    count(*) FILTER (status = 'deferred') AS deferred,
    count(*) FILTER (status = 'dead_letter') AS dead_letters,
    count(*) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')) AS violating,
    count(flagged_s) AS flagged,
    count(*) FILTER (flagged_s <= $objective_s) AS in_time,
    count(tagged_at) AS tagged,
    count(work_item_at) AS work_items,
    count(*) FILTER (found_by_sweep) AS found_by_sweep,
    sum(duplicates)::BIGINT AS duplicates,
    sum(dead_actions)::BIGINT AS dead_actions
FROM read_parquet($interactions)
GROUP BY GROUPING SETS (
    (partition_hour), (partition_hour, queue), (partition_hour, channel), (partition_hour, direction)
)
