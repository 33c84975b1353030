-- $data_to, $objective_s, $objectives, $states (names of figures/recordings.py; none: all), $rule: the chosen recordings
-- that are in one of the states.
(
    FROM (
        SELECT
            *,
            coalesce(verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED'), false) AND flagged_s IS NULL
            AND available_at < $data_to - to_seconds(coalesce(o.seconds, $objective_s)) AS is_overdue,
            is_overdue OR coalesce(flagged_s > coalesce(o.seconds, $objective_s), false) AS is_late
        FROM read_parquet($interactions)
        LEFT JOIN (SELECT unnest($objectives, recursive := true)) o USING (channel)
        WHERE {{window}} AND {{of_recordings}}
    )
    WHERE len($states) = 0
        OR list_contains($states, status)
        OR (list_contains($states, 'late') AND is_late)
        OR (list_contains($states, 'overdue') AND is_overdue)
        OR (list_contains($states, 'flagged') AND flagged_s IS NOT NULL)
        OR (list_contains($states, 'not-judged') AND status <> 'judged')
        OR (
            list_contains($states, 'undetermined') AND status = 'judged' AND len(undetermined_rules) > 0
            AND (len($rule) = 0 OR list_has_any(undetermined_rules, $rule))
        )
)
