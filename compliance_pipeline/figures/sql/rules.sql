-- By rule: the recordings that broke it, beside those of which it could be decided, in the channels where it applies.
WITH broken AS MATERIALIZED (FROM {{broken}}),
undecided AS MATERIALIZED (
    SELECT rule_id, channel, sum(recordings) AS recordings FROM {{undetermined}} GROUP BY rule_id, channel
), judged AS (
    SELECT channel, sum(judged) AS judged FROM {{coverage}} GROUP BY channel
), applies AS (
    SELECT rule_id, channel FROM broken UNION SELECT rule_id, channel FROM undecided
), screened AS (
    SELECT a.rule_id, sum(j.judged - coalesce(u.recordings, 0))::BIGINT AS screened
    FROM applies a JOIN judged j USING (channel) LEFT JOIN undecided u USING (rule_id, channel)
    GROUP BY a.rule_id
), chosen AS (
    SELECT
        rule_id,
        arg_max(violation_type, partition_hour) AS violation_type, arg_max(severity, partition_hour) AS severity,
        sum(open + confirmed + dismissed)::BIGINT AS recordings,
        sum(open)::BIGINT AS open, sum(confirmed)::BIGINT AS confirmed, sum(dismissed)::BIGINT AS dismissed
    FROM broken WHERE is_chosen GROUP BY rule_id
)
SELECT c.rule_id, violation_type, severity, recordings, coalesce(screened, 0) AS screened, open, confirmed, dismissed
FROM chosen c LEFT JOIN screened USING (rule_id)
WHERE recordings > 0
ORDER BY recordings DESC, rule_id
