-- $fine, $coarse: of each fine bucket, the bucket of the series that it belongs to.
(SELECT unnest($fine) AS fine, unnest($coarse) AS coarse)
