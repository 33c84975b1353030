-- $dimension: by its values and rule, what broke it.
SELECT
    CASE $dimension WHEN 'queue' THEN queue WHEN 'channel' THEN channel WHEN 'direction' THEN direction
        WHEN 'policy_version' THEN policy_version END AS value,
    rule_id, sum(open + confirmed + dismissed)::BIGINT AS violations
FROM {{broken}}
WHERE is_chosen
GROUP BY value, rule_id HAVING sum(open + confirmed + dismissed) > 0
