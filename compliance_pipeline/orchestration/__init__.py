"""What Dagster sees: partitions, resources, assets, checks, sensors. Thin: the work is done in `steps`."""
