-- Violations that wait for a review, by bucket and severity.
SELECT severity, partition_hour, sum(open)::BIGINT AS open
FROM {{broken}}
WHERE is_chosen
GROUP BY severity, partition_hour HAVING sum(open) > 0
