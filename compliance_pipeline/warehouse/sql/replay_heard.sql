-- The findings that each part of the pack looks at, by recording and in order of time; `shape` is equal where its rules
-- can't tell them apart. A recording in which a part finds nothing to look at, or lacks what it needs, has no row, but
-- where it looks at the local time.
-- found: of each finding, in one number that sorts: from bit 56 on its start, from bit 20 on its number in the recording,
-- and below what it is to the pack.
CREATE OR REPLACE TEMP TABLE heard AS
WITH looked_at AS (
    SELECT
        s.n,
        l.part,
        l.side,
        l.needs,
        s.confidence,
        (s.start_ms::HUGEINT << 56) + (s.finding_no::HUGEINT << 20)
            + l.look_no * 12
            + CASE s.detector WHEN 'tones' THEN 0 WHEN 'digits' THEN 3 WHEN 'text' THEN 6 ELSE 9 END
            + CASE s.speaker WHEN 'agent' THEN 0 WHEN 'customer' THEN 1 ELSE 2 END AS finding
    FROM said s
    JOIN looks l ON l.kind = s.kind AND l.phrase IS NOT DISTINCT FROM s.phrase
), complete AS (
    SELECT n, part FROM looked_at WHERE needs > 0
    GROUP BY n, part, needs HAVING bit_or(side) & needs = needs
), grouped AS (
    SELECT
        n, part, list_sort(list(finding)) AS found, bit_or(side) AS side, min(confidence) AS low, max(confidence) AS high
    FROM looked_at
    WHERE needs = 0 OR (n, part) IN (FROM complete)
    GROUP BY n, part
), detailed AS (
    SELECT g.n, g.part, list(s.confidence ORDER BY finding) AS confidences
    FROM (SELECT n, part, unnest(found) AS finding FROM grouped WHERE low <> high) g
    JOIN said s ON s.n = g.n AND s.finding_no = ((g.finding >> 20) & 68719476735)::INTEGER
    GROUP BY g.n, g.part
), shaped AS (
    SELECT
        g.n,
        g.part,
        g.found,
        concat_ws(
            '|',
            [x & 1048575 FOR x IN g.found],
            coalesce(d.confidences::VARCHAR, len([x FOR x IN $thresholds::DOUBLE[] IF g.low >= x])::VARCHAR),
            CASE WHEN g.side & 3 = 3 THEN [x >> 56 FOR x IN g.found]::VARCHAR
                WHEN g.side & 4 = 4
                THEN [len([y FOR y IN $limits::DOUBLE[] IF (x >> 56) <= y]) FOR x IN g.found]::VARCHAR END
        ) AS shape
    FROM grouped g LEFT JOIN detailed d USING (n, part)
)
SELECT s.n, v.view_no, if(v.dated, r.clock, NULL) AS clock, if(v.dated, r.zone, NULL) AS zone, s.shape, s.found
FROM shaped s JOIN replayed r USING (n) JOIN views v USING (facts_no, part)
UNION ALL
SELECT r.n, v.view_no, r.clock, r.zone, '', []
FROM replayed r JOIN views v USING (facts_no)
WHERE v.dated AND r.zone IS NOT NULL AND NOT EXISTS (FROM grouped g WHERE g.n = r.n AND g.part = v.part)
