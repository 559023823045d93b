"""Concept alignment: InfoNCE between images and a controlled vocabulary of concepts (FairMed-VLM, stage 1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fairvlm_core.losses.pairs import as_float, check_positive, full_precision, masked_logsumexp, unit_rows


@full_precision
def concept_alignment(
    image_embeddings: Tensor, concept_embeddings: Tensor, positives: Tensor, *, temperature: float = 0.07
) -> Tensor:
    """Draw an image to each of its concepts and away from the concepts it does not have (L_concept, stage 1).

    One term per (image, positive concept): minus the log of the share of that concept among itself and the concepts
    that are not positive for the image. The other positives of an image are true as well, so they are never among its
    negatives. Both sides are L2-normalised here.

    Args:
        image_embeddings: [n, d].
        concept_embeddings: [C, d].
        positives: [n, C] bool, the concepts that hold for each image.
        temperature: tau_c, greater than 0.

    Returns:
        Scalar, the mean over all terms; 0 where no image has a concept.

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.
    """
    if image_embeddings.ndim != 2 or image_embeddings.shape[1] == 0:
        raise ValueError(f"image_embeddings must be [n, d] with d > 0, not {list(image_embeddings.shape)}.")
    if concept_embeddings.ndim != 2 or concept_embeddings.shape[1] != image_embeddings.shape[1]:
        raise ValueError(
            f"concept_embeddings must be [C, d] with d = {image_embeddings.shape[1]}, "
            f"not {list(concept_embeddings.shape)}."
        )
    expected = (len(image_embeddings), len(concept_embeddings))
    if tuple(positives.shape) != expected:
        raise ValueError(f"positives must be [n, C] = {list(expected)}, not {list(positives.shape)}.")
    check_positive(temperature=temperature)

    images, concepts = as_float(image_embeddings, concept_embeddings)
    positives = positives.to(images.device) > 0
    scores = unit_rows(images) @ unit_rows(concepts).T / temperature
    negatives, any_negative = masked_logsumexp(scores, ~positives)
    # An image with every concept has nothing to be told apart from: its terms are -log 1.
    terms = -F.logsigmoid(scores - negatives.unsqueeze(1))
    terms = terms.masked_fill(~(positives & any_negative.unsqueeze(1)), 0.0)
    return terms.sum() / positives.sum().clamp_min(1)
