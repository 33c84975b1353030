-- $interactions, $objective_s, $objectives: what became of the recordings of each hour.
SELECT
    partition_hour, queue, channel, direction, coalesce(policy_version, '') AS policy_version,
    count(*) AS received,
    count(*) FILTER (status = 'judged') AS judged,
    count(*) FILTER (status = 'unscreenable') AS unscreenable,
    count(*) FILTER (status = 'waiting') AS waiting,
    count(*) FILTER (status = 'deferred') AS deferred,
    count(*) FILTER (status = 'dead_letter') AS dead_letters,
    count(*) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')) AS violating,
    count(flagged_s) AS flagged,
    count(*) FILTER (flagged_s <= coalesce(o.seconds, $objective_s)) AS in_time,
    count(*) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED') AND flagged_s IS NULL) AS unflagged,
    count(tagged_at) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')) AS tagged,
    count(work_item_at) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')) AS work_items,
    count(reviewed_at) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')) AS reviewed,
    count(*) FILTER (found_by_sweep) AS found_by_sweep,
    sum(duplicates)::BIGINT AS duplicates
FROM read_parquet($interactions)
LEFT JOIN (SELECT unnest($objectives, recursive := true)) o USING (channel)
GROUP BY ALL
