"""`compliance worker`: a warm worker. Only arguments, printing and exit codes; the work is orchestration.worker's."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from compliance_pipeline.orchestration.worker import Worker

err = Console(stderr=True)


def worker(
    runs: Annotated[int, typer.Option(min=1, help="Runs at a time; of several, one is kept for what is live.")] = 4,
) -> None:
    """Execute Dagster's runs in warm processes: everything is imported before a run comes.

    For instances whose launcher is WorkerRunLauncher (`compliance up` with COMPLIANCE_WORKERS, or
    deploy/dagster.server.yaml). As many of these as you like, on any machine that reaches Dagster's storage
    (DAGSTER_HOME), the inbox's database and the warehouse. Live runs go first; others run at lower priority.

    SIGTERM or Ctrl-C takes no more runs and finishes those under way; what has not ended after 25 seconds is handed
    back, and Dagster tries it again. A second one does not wait.

    Example:

        DAGSTER_HOME=/srv/dagster compliance worker
    """
    import dagster as dg

    from compliance_pipeline.cli import fail, settings_or_exit
    from compliance_pipeline.orchestration.launcher import WorkerRunLauncher
    from compliance_pipeline.orchestration.launches import Launches
    from compliance_pipeline.orchestration.worker import serve

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("compliance_pipeline").setLevel(logging.INFO)
    settings = settings_or_exit()
    try:
        instance = dg.DagsterInstance.get()
    except dg.DagsterError as error:
        why = type(error).__qualname__
        raise fail(f"Dagster's instance could not be opened ({why}): is DAGSTER_HOME set?") from None
    with instance:
        if not isinstance(instance.run_launcher, WorkerRunLauncher):
            raise fail(
                f"the instance in DAGSTER_HOME launches runs by {type(instance.run_launcher).__name__}, so none would "
                "come: set its run_launcher to WorkerRunLauncher (deploy/dagster.server.yaml)"
            )
        launches = Launches(settings.inbox_database_url)
        try:
            serve(instance, launches, runs, _ready)
        finally:
            launches.close()


def _ready(worker: "Worker") -> None:
    err.print(f"worker {worker.name} takes runs", highlight=False)
