"""Predictions, and nothing else, are judged here: metrics, thresholds, selection, report."""

# What can select an epoch or a model on validation; see `selection.criterion`.
CRITERIA = ("auc", "es_auc", "worst_group_auc", "dto")
