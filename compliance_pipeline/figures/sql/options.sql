-- Rules that were broken in the window.
SELECT DISTINCT rule_id AS rule, severity FROM {{rules}}
