-- What became of the window's recordings.
SELECT
    coalesce(sum(received), 0)::BIGINT AS received,
    coalesce(sum(judged), 0)::BIGINT AS judged,
    coalesce(sum(unscreenable), 0)::BIGINT AS unscreenable,
    coalesce(sum(waiting), 0)::BIGINT AS waiting,
    coalesce(sum(deferred), 0)::BIGINT AS deferred,
    coalesce(sum(dead_letters), 0)::BIGINT AS dead_letters,
    coalesce(sum(violating), 0)::BIGINT AS violating,
    coalesce(sum(flagged), 0)::BIGINT AS flagged,
    coalesce(sum(in_time), 0)::BIGINT AS in_time,
    coalesce(sum(unflagged), 0)::BIGINT AS unflagged,
    coalesce(sum(tagged), 0)::BIGINT AS tagged,
    coalesce(sum(work_items), 0)::BIGINT AS work_items,
    coalesce(sum(reviewed), 0)::BIGINT AS reviewed,
    coalesce(sum(found_by_sweep), 0)::BIGINT AS found_by_sweep,
    coalesce(sum(duplicates), 0)::BIGINT AS duplicates
FROM {{coverage}}
