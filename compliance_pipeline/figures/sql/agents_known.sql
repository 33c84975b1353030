-- $most: the agents of whom most was judged.
SELECT agent FROM {{agents}} GROUP BY agent ORDER BY sum(judged) DESC, agent LIMIT $most
