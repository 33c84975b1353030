-- $most: the newest hours with deliveries that failed or were given up on.
SELECT DISTINCT date_trunc('hour', partition_hour) AS hour
FROM {{actions}}
WHERE failed + dead > 0
ORDER BY hour DESC
LIMIT $most
