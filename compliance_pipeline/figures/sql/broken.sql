-- The window's broken rules (recording × rule).
SELECT
    coalesce(sum(open + confirmed + dismissed), 0)::BIGINT AS violations,
    coalesce(sum(open), 0)::BIGINT AS open,
    coalesce(sum(open + confirmed + dismissed) FILTER (severity = 'critical'), 0)::BIGINT AS critical
FROM {{broken}}
WHERE is_chosen
