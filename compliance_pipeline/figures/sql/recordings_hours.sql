-- Recordings by hour and status; late, unflagged: at least as many as are late, and overdue. Newest first.
SELECT
    date_trunc('hour', partition_hour) AS hour,
    sum(received)::BIGINT AS received, sum(judged)::BIGINT AS judged, sum(unscreenable)::BIGINT AS unscreenable,
    sum(waiting)::BIGINT AS waiting, sum(deferred)::BIGINT AS deferred, sum(dead_letters)::BIGINT AS dead_letter,
    sum(flagged)::BIGINT AS flagged, sum(unflagged)::BIGINT AS overdue,
    sum(flagged - in_time + unflagged)::BIGINT AS late, sum(received - judged)::BIGINT AS "not-judged"
FROM {{coverage}}
GROUP BY ALL
ORDER BY hour DESC
