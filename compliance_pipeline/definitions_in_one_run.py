"""For `dagster asset materialize -m compliance_pipeline.definitions_in_one_run --partition-range`."""

import dagster as dg


@dg.definitions
def in_one_run() -> dg.Definitions:
    """The same assets for `dagster asset materialize --partition-range`, which asks for this policy of each.

    Not that of the definitions themselves: a backfill on Dagster's page would become one run, however long.
    """
    from compliance_pipeline.definitions import compliance_pipeline

    def of(one: object) -> object:
        if isinstance(one, dg.AssetsDefinition) and one.partitions_def:
            return one.with_attributes(backfill_policy=dg.BackfillPolicy.single_run())
        return one

    loaded = compliance_pipeline()
    return dg.Definitions(
        assets=[of(one) for one in loaded.assets or ()],  # type: ignore[misc]
        asset_checks=loaded.asset_checks,
        resources=loaded.resources,
        executor=loaded.executor,
    )
