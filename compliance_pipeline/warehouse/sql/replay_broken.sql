-- $hour, $engine, $policy: the violations of the recordings in `replayed`, as in `violations`; in the pack's order, as
-- runs store them.
CREATE OR REPLACE TEMP TABLE broken AS
SELECT
    r.recording_id,
    $policy AS policy_version,
    $engine AS engine_version,
    w.rule_id,
    $hour::TIMESTAMPTZ AS partition_hour,
    r.channel,
    w.verdict,
    w.violation_type,
    w.severity,
    f.detector,
    f.speaker,
    f.start_ms,
    f.confidence,
    f.masked,
    f.hits,
    f.finding_no
FROM fired f
JOIN rules w USING (rule_no)
JOIN replayed r USING (n)
ORDER BY r.recording_id, f.rule_no
