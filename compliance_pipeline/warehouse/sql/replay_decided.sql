-- The rule that decides for each recording, and as bits the rules that could not be decided.
CREATE OR REPLACE TEMP TABLE decided AS
WITH deciding AS (
    SELECT n, rule_no, confidence, start_ms
    FROM fired JOIN rules USING (rule_no)
    QUALIFY row_number() OVER (PARTITION BY n ORDER BY precedence, confidence DESC, start_ms, rule_no) = 1
), of_facts AS (
    SELECT facts_no, bit_or(undetermined) AS undetermined
    FROM blank JOIN outcomes USING (outcome_no) GROUP BY facts_no
), of_findings AS (
    SELECT n, bit_or(undetermined) AS undetermined, bit_or(rules) AS rules
    FROM told JOIN outcomes USING (outcome_no) JOIN parts USING (part) GROUP BY n
)
SELECT
    r.n,
    d.rule_no,
    d.confidence,
    d.start_ms,
    r.unscreenable_reason IS NOT NULL AS is_incomplete,
    coalesce((f.undetermined & ~h.rules) | h.undetermined, f.undetermined) AS undetermined
FROM replayed r
JOIN of_facts f USING (facts_no)
LEFT JOIN of_findings h USING (n)
LEFT JOIN deciding d USING (n)
