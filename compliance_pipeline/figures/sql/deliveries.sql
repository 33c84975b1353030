-- By action: how often it was asked for, and what came of it; those given up on first.
SELECT
    action, sum(planned)::BIGINT AS planned, sum(done)::BIGINT AS done, sum(retried)::BIGINT AS retried,
    sum(failed)::BIGINT AS failed, sum(dead)::BIGINT AS dead
FROM {{actions}}
GROUP BY action
ORDER BY dead DESC, failed DESC, planned DESC, action
