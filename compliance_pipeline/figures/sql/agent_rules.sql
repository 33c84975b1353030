-- By agent and chosen rule, the recordings that broke it.
SELECT agent, rule_id, sum(violations)::BIGINT AS violations
FROM {{agent_rules}}
WHERE len($rule) = 0 OR list_contains($rule, rule_id)
GROUP BY agent, rule_id
