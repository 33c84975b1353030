-- $violations: what was to be done about them, and what came of it.
SELECT
    partition_hour, queue, channel, direction, action.action AS action,
    count(*) AS planned,
    count(*) FILTER (action.status = 'done') AS done,
    count(*) FILTER (action.attempts > 1) AS retried,
    count(*) FILTER (action.status = 'failed') AS failed,
    count(*) FILTER (action.status = 'dead') AS dead
FROM (SELECT *, unnest(actions) AS action FROM read_parquet($violations))
GROUP BY ALL
