-- $interactions, $violations, $start, $end, $objective_s and a list for each dimension (empty: all): what became of the window's recordings.
WITH chosen AS (
    FROM read_parquet($interactions)
    WHERE available_at >= $start AND available_at < $end
      AND (len($queue) = 0 OR list_contains($queue, queue))
      AND (len($channel) = 0 OR list_contains($channel, channel))
      AND (len($direction) = 0 OR list_contains($direction, direction))
      AND (len($agent) = 0 OR list_contains($agent, agent))
)
SELECT
    count(*) AS received,
    count(*) FILTER (status = 'judged') AS judged,
    count(*) FILTER (status = 'unscreenable') AS unscreenable,
    count(*) FILTER (status = 'waiting') AS waiting,
    count(*) FILTER (status = 'deferred') AS deferred,
    count(*) FILTER (status = 'dead_letter') AS dead_letters,
    count(*) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')) AS violating,
    count(flagged_s) AS flagged,
    count(*) FILTER (flagged_s <= $objective_s) AS in_time,
    count(*) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED') AND flagged_s IS NULL
        AND available_at < $data_to - to_seconds($objective_s)) AS overdue,
    count(work_item_at) AS work_items,
    count(*) FILTER (found_by_sweep) AS found_by_sweep,
    coalesce(sum(duplicates), 0)::BIGINT AS duplicates,
    coalesce(sum(dead_actions), 0)::BIGINT AS dead_actions
FROM chosen
