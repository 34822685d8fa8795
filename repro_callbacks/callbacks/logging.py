"""A run's record to every logger of a trainer, and beside its logs.

Loggers keep hyperparameters differently, and the user's own must stay visible beside ours:

- TensorBoard's HParams tab shows the first call of a run only: one call holds the user's and ours. If Lightning will
  log none of the user's, they may still log some by hand, so ours wait until training begins (:func:`log_waiting`).
- MLflow's params can't change: what a resume changes goes into a tag of the same name, and so does what is too long.
- Any other logger gets the user's and ours in one call, whether it adds up, replaces or keeps the first.
"""

from __future__ import annotations

import os
import re
import warnings
from typing import Any, Final

from repro_callbacks.callbacks.base import installed_namespaces
from repro_callbacks.record import RunRecord
from repro_callbacks.record.beside import FILE, write_record
from repro_callbacks.record.differences import Scalar

PREFIX: Final = "repro/"

MLFLOW_PARAM_LENGTH: Final = 250  # Lightning's MLFlowLogger cuts a longer value without a word
MLFLOW_TAG_LENGTH: Final = 5000  # mlflow's own limit, 5000 or 8000 by version; a longer value is refused
MLFLOW_BATCH: Final = 100  # params and tags that mlflow takes at once
MLFLOW_FORBIDDEN: Final = re.compile(r"[^\w\-. /]")  # mlflow refuses a key with anything else, brackets for one


def log_record(trainer: Any, record: RunRecord, module: Any) -> list[Any]:
    """Log a record once to every logger of a trainer and write ``run_record.json`` beside the logs.

    To be called in ``on_fit_start``; Lightning logs the user's hyperparameters right after it. Only the first process
    of all logs. A logger that refuses is named in one warning. With ``fast_dev_run`` no file is written.

    Args:
        trainer: A Trainer of ``lightning.pytorch`` or ``pytorch_lightning``.
        record: What to log; its fields get the prefix ``repro/``. Those that are None are left out.
        module: The LightningModule that is trained.

    Returns:
        The TensorBoard loggers whose HParams tab must wait, for :func:`log_waiting`.

    Raises:
        OSError: If the file can't be written.
    """
    if not trainer.is_global_zero:
        return []
    ours = _fields(record)
    users = _user_hyperparameters(trainer, module)
    waiting, refusals = [], []
    for logger in trainer.loggers:
        try:
            if _is(logger, "MLFlowLogger"):
                _log_to_mlflow(logger, ours)
            elif _is(logger, "TensorBoardLogger"):
                waiting += _log_to_tensorboard(logger, users, ours)
            else:
                logger.log_hyperparams({**users, **ours})
        except Exception as error:  # noqa: BLE001  a logger may raise anything; that must not cost the training
            refusals.append(f"{type(logger).__name__} ({type(error).__name__}: {error})")
    path = None if trainer.fast_dev_run else write_record(f"{_directory(trainer).rstrip('/')}/{FILE}", record)
    if refusals:
        kept = "it is kept in checkpoints" if path is None else f"it is kept in {path}"
        warnings.warn(f"the run record could not be logged to {' and '.join(refusals)}; {kept}", stacklevel=2)
    return waiting


def log_waiting(loggers: list[Any], record: RunRecord) -> None:
    """Put the record into the HParams tab of those TensorBoard loggers to which the user has logged nothing by now.

    To be called once, when the first epoch begins, with what :func:`log_record` returned.
    """
    ours = _fields(record)
    for logger in loggers:
        if all(str(name).startswith(PREFIX) for name in logger.hparams):
            logger.log_hyperparams(ours)


def _fields(record: RunRecord) -> dict[str, Scalar]:
    return {PREFIX + name: value for name, value in record.flat().items() if value is not None}


def _user_hyperparameters(trainer: Any, module: Any) -> dict[str, Any]:
    """Return what Lightning will log by itself after ``on_fit_start``.

    ``_log_hyperparams`` is private: there is no public way to ask whether ``save_hyperparameters(logger=False)``
    forbids logging. If the two disagree on a value, Lightning raises right after us.
    """
    holders = [holder for holder in (module, trainer.datamodule) if getattr(holder, "_log_hyperparams", False)]
    merged = {name: value for holder in holders for name, value in holder.hparams_initial.items()}
    merged.pop("_class_path", None)  # LightningCLI's own
    return merged


def _log_to_tensorboard(logger: Any, users: dict[str, Any], ours: dict[str, Scalar]) -> list[Any]:
    """Log to the text tab and to hparams.yaml, and to the HParams tab if the user's values can be in the same call."""
    logger.experiment.add_text(f"{PREFIX}run_record", _markdown(ours))
    if users:
        logger.log_hyperparams({**users, **ours})
        return []
    logged_by_hand = bool(logger.hparams)
    logger.hparams.update(ours)  # these become hparams.yaml
    return [] if logged_by_hand else [logger]


def _log_to_mlflow(logger: Any, ours: dict[str, Scalar]) -> None:
    from mlflow.entities import Param, RunTag

    client, run = logger.experiment, logger.run_id
    known = client.get_run(run).data.params
    wanted = {MLFLOW_FORBIDDEN.sub("_", name): str(value) for name, value in ours.items()}
    params = {name: value for name, value in wanted.items() if name not in known and len(value) <= MLFLOW_PARAM_LENGTH}
    tags = {name: value for name, value in wanted.items() if name not in params and known.get(name) != value}
    entities = [Param(name, value) for name, value in params.items()]
    entities += [RunTag(name, value[:MLFLOW_TAG_LENGTH]) for name, value in tags.items()]
    for start in range(0, len(entities), MLFLOW_BATCH):
        chunk = entities[start : start + MLFLOW_BATCH]
        client.log_batch(
            run,
            params=[entity for entity in chunk if isinstance(entity, Param)],
            tags=[entity for entity in chunk if isinstance(entity, RunTag)],
        )


def _markdown(ours: dict[str, Scalar]) -> str:
    rows = (f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in ours.items())
    return "\n".join(["| field | value |", "|---|---|", *rows])


def _directory(trainer: Any) -> str:
    """Return where the first logger keeps this run's logs, or Lightning the checkpoints if it keeps none on disk."""
    if not trainer.loggers:
        return str(trainer.default_root_dir)
    logger = trainer.loggers[0]
    if logger.log_dir:
        return str(logger.log_dir)
    # As ModelCheckpoint does: the save_dir of these loggers is shared by all their runs.
    parts = [part for part in (logger.name, logger.version) if part is not None]
    return os.path.join(str(logger.save_dir or trainer.default_root_dir), *map(str, parts))


def _is(logger: Any, name: str) -> bool:
    """Say whether a logger is the one that Lightning has under this name, in either namespace."""
    return isinstance(logger, tuple(getattr(namespace.loggers, name) for namespace in installed_namespaces()))
