-- Each shape once, with one recording's findings for all.
CREATE OR REPLACE TEMP TABLE shapes AS
SELECT *, row_number() OVER () AS shape_no
FROM (SELECT view_no, clock, zone, shape, any_value(struct_pack(n, found)) AS one FROM heard GROUP BY ALL)
