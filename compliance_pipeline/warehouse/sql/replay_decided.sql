-- The rule that decides for each recording, and as bits the rules that could not be decided.
CREATE OR REPLACE TEMP TABLE decided AS
WITH deciding AS (
    SELECT n, rule_no, confidence, start_ms
    FROM fired JOIN rules USING (rule_no)
    QUALIFY row_number() OVER (PARTITION BY n ORDER BY precedence, confidence DESC, start_ms, rule_no) = 1
), by_view AS (
    SELECT v.facts_no, v.view_no, v.rules, o.undetermined, bit_count(o.undetermined) > 0 AS is_open
    FROM views v JOIN blank USING (view_no) JOIN outcomes o USING (outcome_no)
), of_facts AS (
    SELECT facts_no, bit_or(undetermined) AS undetermined FROM by_view GROUP BY facts_no
), of_findings AS (
    SELECT t.n, bit_or(o.undetermined) AS undetermined, bit_or(v.rules) AS rules
    FROM told t
    JOIN outcomes o USING (outcome_no)
    JOIN (SELECT DISTINCT view_no, rules, is_open FROM by_view) v USING (view_no)
    WHERE v.is_open OR bit_count(o.undetermined) > 0
    GROUP BY t.n
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
