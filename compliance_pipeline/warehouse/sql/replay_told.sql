-- What came of each part of the pack that looked at something of a recording.
CREATE OR REPLACE TEMP TABLE told AS
SELECT h.n, h.view_no, h.found, c.outcome_no
FROM heard h
JOIN shapes s
    ON s.view_no = h.view_no AND s.shape = h.shape
    AND s.clock IS NOT DISTINCT FROM h.clock AND s.zone IS NOT DISTINCT FROM h.zone
JOIN came c USING (shape_no)
