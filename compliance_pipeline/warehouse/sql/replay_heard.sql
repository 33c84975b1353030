-- The findings that each part of the pack looks at, by recording and in order of time; `shape` is equal where its rules
-- can't tell them apart. A recording of which a part looks at nothing has no row, but where it looks at the local time.
CREATE OR REPLACE TEMP TABLE heard AS
WITH looked_at AS (
    SELECT
        r.n,
        l.part,
        l.side,
        f.confidence,
        struct_pack(
            start_ms := f.start_ms,
            finding_no := f.finding_no,
            found_at := f.rowid,
            token := l.look_no * 12
                + CASE f.detector WHEN 'tones' THEN 0 WHEN 'digits' THEN 3 WHEN 'text' THEN 6 ELSE 9 END
                + CASE f.speaker WHEN 'agent' THEN 0 WHEN 'customer' THEN 1 ELSE 2 END,
            confidence := f.confidence
        ) AS finding
    FROM findings f
    JOIN replayed r USING (recording_id)
    JOIN looks l ON l.kind = f.kind AND l.phrase IS NOT DISTINCT FROM f.phrase
    WHERE f.partition_hour = $hour AND f.engine_version = $engine
), ordered AS (
    SELECT
        n, part, list_sort(list(finding)) AS found, bit_or(side) AS side, min(confidence) AS low, max(confidence) AS high
    FROM looked_at
    GROUP BY n, part
), shaped AS (
    SELECT
        n,
        part,
        found,
        concat_ws(
            '|',
            [x.token FOR x IN found],
            CASE WHEN low = high THEN len([x FOR x IN $thresholds::DOUBLE[] IF low >= x])::VARCHAR
                ELSE [x.confidence FOR x IN found]::VARCHAR END,
            CASE WHEN side & 3 = 3 THEN [x.start_ms FOR x IN found]::VARCHAR
                WHEN side & 4 = 4 THEN [len([y FOR y IN $limits::DOUBLE[] IF x.start_ms <= y]) FOR x IN found]::VARCHAR END
        ) AS shape
    FROM ordered
)
SELECT n, r.facts_no, part, NULL::TIMESTAMPTZ AS clock, NULL::VARCHAR AS zone, shape, found
FROM shaped JOIN replayed r USING (n) JOIN parts p USING (part)
WHERE NOT p.dated OR r.zone IS NULL
UNION ALL
SELECT r.n, r.facts_no, p.part, r.clock, r.zone, coalesce(s.shape, ''), coalesce(s.found, [])
FROM replayed r CROSS JOIN parts p LEFT JOIN shaped s ON s.n = r.n AND s.part = p.part
WHERE p.dated AND r.zone IS NOT NULL
