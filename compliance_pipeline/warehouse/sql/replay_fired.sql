-- Every rule that fired on a recording, with what only the recording knows; the rules of `blank` fire on facts alone.
CREATE OR REPLACE TEMP TABLE fired AS
WITH fired_here AS (
    SELECT t.n, o.*, t.found[o.place] AS finding, t.found[o.near] AS beside
    FROM told t JOIN outcome_rules o USING (outcome_no)
    UNION ALL BY NAME
    SELECT r.n, o.*
    FROM blank b
    JOIN outcome_rules o USING (outcome_no)
    JOIN replayed r USING (facts_no)
    WHERE NOT EXISTS (FROM told t WHERE t.n = r.n AND t.part = b.part)
)
SELECT
    h.n,
    h.rule_no,
    h.hits,
    h.detector,
    coalesce(f.speaker, '') AS speaker,
    coalesce(least(finding.start_ms, beside.start_ms), 0) AS start_ms,
    coalesce(least(finding.confidence, beside.confidence), h.confidence) AS confidence,
    coalesce(f.masked, h.masked) AS masked,
    finding.finding_no AS finding_no
FROM fired_here h
LEFT JOIN (SELECT rowid AS found_at, speaker, masked FROM findings WHERE partition_hour = $hour) f
    ON f.found_at = finding.found_at
