"""Log a transfer to MLflow: every evaluation as it is made, and how the training ended.

pip install gnnrec mlflow
python examples/mlflow_log.py data/tiny/shop.csv
mlflow ui
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow

from gnnrec import Recommender
from gnnrec.callbacks import Evaluation, watched
from gnnrec.interactions import read_interactions


class MlflowCallback:
    """Writes to the run that is active."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Log the value, and the loss where there is one."""
        mlflow.log_metric(f"{evaluation.label}/value", evaluation.value, step=evaluation.step)
        if evaluation.loss is not None:
            mlflow.log_metric(f"{evaluation.label}/loss", evaluation.loss, step=evaluation.step)

    def on_end(self, label: str, summary: Mapping[str, Any]) -> None:
        """Log which step was the best; a refit of known length judges none."""
        if summary["best_step"]:
            mlflow.log_metric(f"{label}/best_step", summary["best_step"])


def main() -> None:
    """Fit to a log inside a run of MLflow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="CSV, TSV, Parquet or JSON lines")
    parser.add_argument("--checkpoint", default="channels.graph")
    parser.add_argument("--retrain", default="final:1")
    arguments = parser.parse_args()
    log = read_interactions(arguments.log)
    with mlflow.start_run(), watched(MlflowCallback()):
        mlflow.log_params({"checkpoint": arguments.checkpoint, "retrain": arguments.retrain})
        recommender = Recommender.from_pretrained(arguments.checkpoint, retrain=arguments.retrain)
        recommender.fit(log)
    print(recommender.recommend(k=3).head(12).to_string(index=False))


if __name__ == "__main__":
    main()
