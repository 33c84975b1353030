-- Broken rules by hour, as reviewed; is_chosen: of a chosen rule and severity.
(
    SELECT
        * REPLACE (
            CASE WHEN len($review) = 0 OR list_contains($review, 'open') THEN open ELSE 0 END AS open,
            CASE WHEN len($review) = 0 OR list_contains($review, 'confirmed') THEN confirmed ELSE 0 END AS confirmed,
            CASE WHEN len($review) = 0 OR list_contains($review, 'dismissed') THEN dismissed ELSE 0 END AS dismissed
        ),
        (len($rule) = 0 OR list_contains($rule, rule_id))
        AND (len($severity) = 0 OR list_contains($severity, severity)) AS is_chosen
    FROM {{rules}}
)
