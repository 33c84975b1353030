-- $limits: milliseconds within which something must be said. The facts about the recordings in `chosen`, each once.
CREATE OR REPLACE TEMP TABLE facts AS
SELECT *, row_number() OVER () AS facts_no
FROM (
    SELECT
        channel, direction, queue, words_known, words_timed, speakers, annotations,
        unscreenable_reason IS NULL AS complete,
        started_at IS NOT NULL AS dated,
        [duration_ms < x FOR x IN $limits::DOUBLE[]] AS short,
        any_value(duration_ms) AS duration_ms
    FROM chosen
    GROUP BY ALL
)
