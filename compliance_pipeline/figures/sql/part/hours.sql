-- The hours that begin in the window: rollups know no finer times.
partition_hour >= $start AND partition_hour < $end
