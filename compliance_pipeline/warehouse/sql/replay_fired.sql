-- Every rule that fired on a recording, with what only the recording knows; the rules of `blank` fire on facts alone.
CREATE OR REPLACE TEMP TABLE fired AS
WITH fired_here AS (
    SELECT
        t.n, o.*,
        ((t.found[o.place] >> 20) & 68719476735)::INTEGER AS finding_no,
        ((t.found[o.near] >> 20) & 68719476735)::INTEGER AS near_no
    FROM told t JOIN outcome_rules o USING (outcome_no)
    UNION ALL BY NAME
    SELECT r.n, o.*
    FROM blank b
    JOIN outcome_rules o USING (outcome_no)
    JOIN views v USING (view_no)
    JOIN replayed r USING (facts_no)
    WHERE NOT EXISTS (FROM told t WHERE t.n = r.n AND t.view_no = v.view_no)
), said_there AS (
    FROM said WHERE n IN (SELECT n FROM fired_here)
)
SELECT
    h.n,
    h.rule_no,
    h.hits,
    h.detector,
    coalesce(f.speaker, '') AS speaker,
    coalesce(least(f.start_ms, beside.start_ms), 0) AS start_ms,
    coalesce(least(f.confidence, beside.confidence), h.confidence) AS confidence,
    coalesce(f.masked, h.masked) AS masked,
    f.finding_no
FROM fired_here h
LEFT JOIN said_there f ON f.n = h.n AND f.finding_no = h.finding_no
LEFT JOIN said_there beside ON beside.n = h.n AND beside.finding_no = h.near_no
