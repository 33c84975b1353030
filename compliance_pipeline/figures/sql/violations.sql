-- $interactions, $violations, $start, $end, lists as in counts.sql: by rule, the recordings that broke it, beside those of which it could be decided.
WITH chosen AS (
    FROM read_parquet($interactions)
    WHERE available_at >= $start AND available_at < $end
      AND (len($queue) = 0 OR list_contains($queue, queue))
      AND (len($channel) = 0 OR list_contains($channel, channel))
      AND (len($direction) = 0 OR list_contains($direction, direction))
      AND (len($agent) = 0 OR list_contains($agent, agent))
), broken AS (
    SELECT x.rule_id, x.violation_type, x.severity, x.channel, count(*) AS recordings
    FROM read_parquet($violations) x SEMI JOIN chosen USING (recording_id)
    GROUP BY ALL
), screened AS (
    SELECT b.rule_id, b.channel, count(*) AS screened
    FROM (SELECT DISTINCT rule_id, channel FROM broken) b
    JOIN chosen c ON c.channel = b.channel AND c.status = 'judged' AND NOT list_contains(c.undetermined_rules, b.rule_id)
    GROUP BY ALL
)
SELECT
    b.rule_id, any_value(b.violation_type) AS violation_type, any_value(b.severity) AS severity,
    sum(b.recordings)::BIGINT AS recordings, coalesce(sum(s.screened), 0)::BIGINT AS screened
FROM broken b LEFT JOIN screened s USING (rule_id, channel)
GROUP BY b.rule_id
ORDER BY recordings DESC, b.rule_id
