-- $new: shapes; their findings in order.
SELECT s.shape_no, f.kind, f.phrase, f.detector, f.speaker, f.start_ms, f.confidence, f.masked
FROM (
    SELECT shape_no, unnest(found).found_at AS found_at, generate_subscripts(found, 1) AS place
    FROM shapes WHERE shape_no IN (SELECT unnest($new::BIGINT[]))
) s
JOIN findings f ON f.rowid = s.found_at
WHERE f.partition_hour = $hour
ORDER BY s.shape_no, s.place
