-- Each shape once, with one recording's findings for all.
CREATE OR REPLACE TEMP TABLE shapes AS
SELECT *, row_number() OVER () AS shape_no
FROM (SELECT facts_no, part, clock, zone, shape, any_value(found) AS found FROM heard GROUP BY ALL)
