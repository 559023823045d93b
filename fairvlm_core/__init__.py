"""fairvlm: fairness-aware training of medical vision-language models as a pipeline."""

__version__ = "0.1.0"
