-- $new: shapes; their findings in order.
SELECT s.shape_no, f.kind, f.phrase, f.detector, f.speaker, f.start_ms, f.confidence, f.masked
FROM (
    SELECT shape_no, one.n AS n, unnest(one.found) AS finding
    FROM shapes WHERE shape_no IN (SELECT unnest($new::BIGINT[]))
) s
JOIN said f ON f.n = s.n AND f.finding_no = ((s.finding >> 20) & 68719476735)::INTEGER
ORDER BY s.shape_no, s.finding
