-- As heat.sql, from the facts.
SELECT g.coarse AS time, {{third}} AS third, count(*) AS recordings
FROM (
    SELECT partition_hour, ceil(ln(greatest(flagged_s, 0.001)) / ln(1.0206)) AS bucket
    FROM {{interactions}} WHERE flagged_s IS NOT NULL
) JOIN {{grid}} g ON g.fine = epoch_ms(partition_hour) // 1000
GROUP BY ALL ORDER BY ALL
