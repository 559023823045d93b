"""The objectives against naive loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases, write_cohort_with_images

from fairvlm_core.cohort.prompts import DESCRIBE, chat, questions
from fairvlm_core.models.dual import load_base as load_dual
from fairvlm_core.models.fair_moe import Encoded, Experts
from fairvlm_core.models.moe import Routing
from fairvlm_core.models.packing import pack
from fairvlm_core.models.vlm import load_base
from fairvlm_core.training.batches import read_samples
from fairvlm_core.training.objectives import (
    GroupBatches,
    answer_losses,
    answer_totals,
    concept_targets,
    converse,
    demographics_of,
    draw_groups,
    encode_unique,
    fairness_oriented_loss,
    image_text_loss,
    same_text,
    shared_groups,
    sinkhorn_distances,
    texts_for,
)

NOTE = "The optic disc is pale and the cup is large."
LABELS = {
    "binary": [[1.0], [0.0], [np.nan]],
    "multiclass": [[0, 1, 0], [1, 0, 0], [np.nan] * 3],
    "multilabel": [[1, 0], [np.nan, 1], [np.nan, np.nan]],
}


@pytest.fixture(scope="module", params=list(TASKS))
def vlm(request, tmp_path_factory):
    base = write_bases(tmp_path_factory.mktemp(request.param), TASKS[request.param])
    vlm = load_base(str(base / "llava"), TASKS[request.param], SIZE)
    vlm.llava.eval()
    return vlm


def log_probabilities(vlm, tokens, prompt, answer, limit=0):
    """float64 log-probabilities of one answer's tokens, from a pass with this one sequence."""
    packed = pack([[vlm.sequence(prompt, answer, limit)]])
    logits = vlm.answer_logits(tokens[None], packed).double().log_softmax(-1)
    return logits.gather(1, packed.target[:, None])[:, 0], logits[0]


def test_instruction_and_answer_losses_equal_loops(vlm):
    task = vlm.task
    labels = np.array(LABELS[task.kind], dtype=np.float32)
    notes, asked = [NOTE, None, None], ["", "Patient: Female.", ""]
    tokens = torch.randn(3, vlm.image_tokens, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        instruction, answers, _ = answer_losses(vlm, tokens, labels, converse(vlm, labels, notes, [[], [], []], asked))
        told, scored = [], []
        for image, row, note, demographics in zip(tokens, labels, notes, asked, strict=True):
            if note:
                told += log_probabilities(vlm, image, chat(DESCRIBE, demographics), note, 48)[0].tolist()
            if task.kind == "multiclass":
                prompt = chat(task.question, demographics)
                options = [log_probabilities(vlm, image, prompt, option)[0] for option in task.concepts]
                if not np.isnan(row).any():
                    told += options[int(row.argmax())].tolist()
                    scored.append(torch.stack([o.mean() for o in options]).log_softmax(0)[int(row.argmax())].item())
                continue
            for question, value in zip(questions(task), row, strict=True):
                if np.isnan(value):
                    continue
                answer = "Yes" if value else "No"
                chosen, first = log_probabilities(vlm, image, chat(question, demographics), answer)
                told += chosen.tolist()
                yes, no = (first[i].exp().item() for i in vlm.yes_no)
                scored.append(math.log((yes if value else no) / (yes + no)))
    assert float(instruction) == pytest.approx(-np.mean(told), rel=1e-4)
    assert float(answers) == pytest.approx(-np.mean(scored), rel=1e-4)


def test_batch_without_any_known_label_or_note_gives_zero(vlm):
    labels = np.full((2, len(vlm.task.labels)), np.nan, dtype=np.float32)
    tokens = torch.randn(2, vlm.image_tokens, 96, requires_grad=True)
    asked = converse(vlm, labels, [None, None], [[], []], ["", ""])
    instruction, answers, _ = answer_losses(vlm, tokens, labels, asked)
    assert instruction.item() == answers.item() == 0
    (instruction + answers).backward()
    assert tokens.grad is None or not tokens.grad.any()


def test_the_losses_of_the_parts_of_a_batch_add_up_to_those_of_the_batch(vlm):
    """With weights: an image that counts twice is as good as two of it."""
    labels = np.array(LABELS[vlm.task.kind], dtype=np.float32)
    notes, said = [NOTE, None, None], ["", "Patient: Female.", ""]
    told = [[(("What is pale?", "The optic disc."), ("And the cup?", "It is large."))], [], []]
    tokens = torch.randn(3, vlm.image_tokens, 96, generator=torch.Generator().manual_seed(0))
    twice = [0, 0, 1, 2]
    with torch.no_grad():
        weighted = converse(vlm, labels, notes, told, said, torch.tensor([2.0, 1.0, 1.0]))
        plain = converse(vlm, labels[twice], *([column[i] for i in twice] for column in (notes, told, said)))
        expected = answer_losses(vlm, tokens[twice], labels[twice], plain)
        totals = answer_totals(weighted, labels, vlm.task.kind)
        parts = [
            answer_losses(vlm, tokens[part], labels[part], weighted[part], totals)
            for part in (np.array([0]), np.array([1, 2]))
        ]
    for i in range(2):
        assert float(parts[0][i] + parts[1][i]) == pytest.approx(float(expected[i]), rel=1e-5)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]), expected[2][[0, 2, 3]], rtol=1e-4, atol=1e-5)


def test_concept_vocabulary(vlm):
    labels = torch.tensor(LABELS[vlm.task.kind])
    phrases, positives = concept_targets(vlm, labels)
    expected = {
        "binary": (["non-glaucoma", "glaucoma"], [[0, 1], [1, 0], [0, 0]]),
        "multiclass": (list(TASKS["multiclass"].concepts), [[0, 1, 0], [1, 0, 0], [0, 0, 0]]),
        "multilabel": (["edema", "a fracture"], [[1, 0], [0, 1], [0, 0]]),
    }[vlm.task.kind]
    assert (phrases, positives.int().tolist()) == expected


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    cohort = write_cohort_with_images(tmp_path_factory.mktemp("cohort"), TASKS["binary"])
    return read_samples(cohort, cohort, "train", ["sex", "age_group"])


def test_demographic_prompts_are_dropped_at_the_given_rate(samples):
    indices = np.arange(len(samples)).repeat(20)
    none = demographics_of(samples, indices, 1.0, torch.Generator().manual_seed(0))
    assert not any(none)
    all_of_them = demographics_of(samples, indices, 0.0, torch.Generator().manual_seed(0))
    assert all(text.endswith(".") for text in all_of_them)
    half = demographics_of(samples, indices, 0.5, torch.Generator().manual_seed(0))
    assert 0.4 < np.mean([bool(text) for text in half]) < 0.6


def test_pairs_are_notes_or_captions(samples):
    indices = np.arange(len(samples)).repeat(20)
    texts = texts_for(samples, indices, 0.5, torch.Generator().manual_seed(0))
    captions = {0.0: "A photo of non-glaucoma", 1.0: "A photo of glaucoma"}
    for i, text in zip(indices, texts, strict=True):
        assert text in (NOTE, captions[samples.labels[i, 0]])
        assert text != NOTE or samples.notes[i] == NOTE
    with_note = [text == NOTE for i, text in zip(indices, texts, strict=True) if samples.notes[i]]
    assert 0.4 < np.mean(with_note) < 0.6


def test_group_batches_hold_their_group(samples):
    drawn = draw_groups(samples, 16, torch.Generator().manual_seed(0))
    assert [len(part) for part in drawn] == [16] * 4
    for part, (k, group) in zip(drawn, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        assert (samples.groups[part, k] == group).all()


def test_image_text_loss_with_distinct_texts_is_that_of_clip():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    image, text = (torch.nn.functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    scale = torch.tensor(7.0)
    same = same_text([f"text {i}" for i in range(6)])
    assert same.equal(torch.eye(6, dtype=torch.bool))
    expected = image_text_contrastive_loss(scale * text @ image.T)
    torch.testing.assert_close(image_text_loss(image, text, same, scale), expected)


def test_image_text_loss_with_equal_texts_equals_a_loop():
    image, text = (torch.nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64), dim=1) for _ in range(2))
    texts = ["a", "b", "a", "c", "a"]
    terms = []
    for rows, columns in ((image, text), (text, image)):
        for i in range(5):
            scores = [math.exp(3.0 * float(rows[i] @ columns[j])) for j in range(5)]
            partners = [j for j in range(5) if texts[j] == texts[i]]
            terms.append(-sum(math.log(scores[j] / sum(scores)) for j in partners) / len(partners))
    found = image_text_loss(image, text, same_text(texts), torch.tensor(3.0))
    assert float(found) == pytest.approx(sum(terms) / 10)


def sent(gates):
    """A routing of which only the gates are read."""
    return Routing(gates.log(), gates > 0, gates > 0, gates)


def test_fol_equals_loops():
    generator = torch.Generator().manual_seed(0)
    unit = lambda n: torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1)  # noqa: E731
    gates = [torch.rand(12, 3, 2, generator=generator), torch.rand(12, 2, generator=generator)]
    image = Encoded(unit(12), {"embedding": sent(gates[0]), "feature": sent(gates[1])})
    spoken = unit(12)
    mask = torch.rand(12, 3, generator=generator) < 0.7
    mask[:, 0] = True
    text = Encoded(spoken, {"embedding": sent(gates[0] * 2), "feature": sent(gates[1] + 1)}, mask)
    layout = GroupBatches(6, (slice(6, 9), slice(9, 12)))
    found = fairness_oriented_loss(image, text, layout)

    cosines = (image.features * text.features).sum(1).double().numpy()
    # n = 6 against m = 3: each value of the smaller sample has the mass of two of the larger.
    bounds = [(6, 9), (9, 12)]
    expected = sum(0.5 * np.mean((np.sort(cosines[:6]) - np.repeat(np.sort(cosines[a:b]), 2)) ** 2) for a, b in bounds)
    assert float(found["distance"]) == pytest.approx(expected, rel=1e-4)

    def dispersion(values, keep=None):
        def variance(rows):
            chosen = [values[i, t].double().numpy() for i in rows for t in range(3) if keep is None or keep[i, t]]
            return np.var(chosen, axis=0)

        if values.ndim == 2:
            variance = lambda rows: np.var(values[list(rows)].double().numpy(), axis=0)  # noqa: E731
        batch = variance(range(6))
        return sum(((batch - variance(range(a, b))) ** 2).sum() for a, b in bounds)

    assert float(found["dispersion_embedding_image"]) == pytest.approx(dispersion(gates[0]), rel=1e-4)
    assert float(found["dispersion_embedding_text"]) == pytest.approx(dispersion(gates[0] * 2, mask), rel=1e-4)
    assert float(found["dispersion_feature_image"]) == pytest.approx(dispersion(gates[1]), rel=1e-4)
    assert float(found["dispersion_feature_text"]) == pytest.approx(dispersion(gates[1] + 1), rel=1e-4)


def test_groups_in_the_batch_are_judged_as_if_they_had_been_drawn():
    """Pairs that stand in the batch give what copies of them behind the batch give."""
    groups = np.array([[0, 1], [1, -1], [0, 0], [1, 0], [2, 1], [0, 1]])
    places = shared_groups(groups)
    assert [place.tolist() for place in places] == [[0, 2, 5], [1, 3], [2, 3], [0, 4, 5]]  # one pair of group 2
    assert shared_groups(np.full((3, 2), -1)) == ()
    generator = torch.Generator().manual_seed(1)
    features = [torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1) for _ in range(2)]
    gates = torch.rand(6, 3, 2, generator=generator)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]] * 3).bool()
    shared = [
        Encoded(side, {"embedding": sent(gates)}, masked) for side, masked in zip(features, (None, mask), strict=True)
    ]
    rows = torch.cat([torch.arange(6), *places])
    drawn = [side.select(rows) for side in shared]
    ends = np.cumsum([6, *map(len, places)]).tolist()
    slices = tuple(map(slice, ends[:-1], ends[1:]))
    found = fairness_oriented_loss(*shared, GroupBatches(6, places))
    wanted = fairness_oriented_loss(*drawn, GroupBatches(6, slices))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(value) > 0
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name


def test_the_papers_distance_is_that_of_geomloss_per_group():
    from geomloss import SamplesLoss

    x, ys = torch.rand(12, requires_grad=True), [torch.rand(5), torch.rand(9)]
    found = sinkhorn_distances(0.01)(x, ys)
    expected = [SamplesLoss("sinkhorn", p=2, blur=0.01, backend="tensorized")(x[:, None], y[:, None]) for y in ys]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-6)
    assert sinkhorn_distances(0.01)(x, []).sum() == 0


def test_texts_are_encoded_once_and_spread(tmp_path):
    base = write_bases(tmp_path, TASKS["binary"])
    dual = load_dual(str(base / "dual"), TASKS["binary"], SIZE, experts=Experts(), seed=0)
    dual.train(False)
    texts = ["a", "b c", "a", "a"]
    with torch.no_grad():
        found = encode_unique(dual, texts)
        expected = dual.encode_text(texts)
    torch.testing.assert_close(found.features, expected.features)
    for kind, routing in expected.routing.items():
        for mine, its in zip(found.routing[kind], routing, strict=True):
            torch.testing.assert_close(mine, its)
    assert found.mask.equal(expected.mask)
