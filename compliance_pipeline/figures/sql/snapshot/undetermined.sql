-- $interactions: judged recordings of which a rule could not be decided.
SELECT partition_hour, queue, channel, direction, policy_version, rule_id, count(*) AS recordings
FROM (
    SELECT * EXCLUDE rule_id, unnest(undetermined_rules) AS rule_id
    FROM read_parquet($interactions) WHERE status = 'judged'
)
GROUP BY ALL
