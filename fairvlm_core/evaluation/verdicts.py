"""Verdicts of the gate, and the words of its measures: what those who judge and those who report have in common."""

PASS, UNSURE, FAIL = "pass", "insufficient evidence", "fail"
HIGHER_IS_BETTER = ("auc", "accuracy", "es_auc", "worst_group_auc")
MARGINS = {"auc_margin": "auc", "accuracy_margin": "accuracy", "worst_group_margin": "worst_group_auc"}
RELATIVE = (*MARGINS, "fairer")  # rules about the champion


def measure_name(measure: str, kind: str) -> str:
    """A measure as the reader sees it; the gap in selection rates is named after the task's kind.

    >>> measure_name("dpd", "multilabel"), measure_name("n", "binary")
    ('DPG', 'images of the smallest group')
    """
    return {
        "auc": "AUC",
        "accuracy": "accuracy",
        "es_auc": "ES-AUC",
        "dpd": "DPD" if kind == "binary" else "DPG",
        "eod": "EOD",
        "worst_group_auc": "worst group AUC",
        "n": "images of the smallest group",
    }[measure]


def signed(value: float) -> str:
    """A difference as text.

    >>> signed(0.0512), signed(-0.0004)
    ('+0.051', '0.000')
    """
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text
