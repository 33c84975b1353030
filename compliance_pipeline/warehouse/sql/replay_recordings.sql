-- The recordings in `chosen`, each with the number of its facts. $by_minute: no rule cares for the second, beyond whether
-- the minute has begun; before 1973 there were time zones that were off by seconds.
CREATE OR REPLACE TEMP TABLE replayed AS
SELECT
    c.n,
    f.facts_no,
    c.recording_id,
    c.channel,
    c.correlation_id,
    c.unscreenable_reason,
    c.called_time_zone AS zone,
    epoch_us(CASE
        WHEN zone IS NULL THEN NULL
        WHEN NOT $by_minute OR c.started_at < '1973-01-01 00:00:00+00' THEN c.started_at
        WHEN c.started_at = date_trunc('minute', c.started_at) THEN c.started_at
        ELSE date_trunc('minute', c.started_at) + INTERVAL 30 SECOND
    END) AS clock
FROM chosen c
JOIN facts f
    ON f.channel = c.channel AND f.direction IS NOT DISTINCT FROM c.direction
    AND f.queue IS NOT DISTINCT FROM c.queue AND f.words_known = c.words_known AND f.words_timed = c.words_timed
    AND f.speakers = c.speakers AND f.annotations IS NOT DISTINCT FROM c.annotations
    AND f.complete = (c.unscreenable_reason IS NULL) AND f.dated = (c.started_at IS NOT NULL)
    AND f.short IS NOT DISTINCT FROM [c.duration_ms < x FOR x IN $limits::DOUBLE[]]
