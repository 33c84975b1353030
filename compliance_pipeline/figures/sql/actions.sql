-- By bucket: actions, and what came of them.
SELECT
    epoch_ms(partition_hour) // 1000 AS at,
    sum(planned)::BIGINT AS planned, sum(done)::BIGINT AS done, sum(retried)::BIGINT AS retried,
    sum(failed)::BIGINT AS failed, sum(dead)::BIGINT AS dead
FROM {{actions}}
GROUP BY ALL
