-- $hour, $engine: the findings of the recordings in `chosen`.
CREATE OR REPLACE TEMP TABLE said AS
SELECT c.n, f.finding_no, f.kind, f.phrase, f.detector, f.speaker, f.start_ms, f.confidence, f.masked
FROM findings f JOIN chosen c USING (recording_id)
WHERE f.partition_hour = $hour AND f.engine_version = $engine
