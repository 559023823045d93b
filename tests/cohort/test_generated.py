"""The generative model does what docs/generated-cohort.md says: its biases, its ground truth, its pictures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2_contingency, norm
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairvlm_core.cohort.adapters import generated
from fairvlm_core.cohort.adapters.generated import SEPARATION, Options, anatomy_auc, bayes_scores, draw_latents
from fairvlm_core.cohort.fundus import draw_fundus
from fairvlm_core.cohort.table import age_group, group_codes, groups_of, label_matrix, task_of
from fairvlm_core.errors import ConfigError

MANY = 40_000  # standard error of a share of one half: 0.0025
OFF = {"representation": 0.0, "prevalence": 0.0, "weak_signal": 0.0, "shortcut": 0.0}


def drawn(seed=3, **options):
    return draw_latents(Options(**{"patients": MANY, "images_per_patient": 1, **options}), seed)


def cells(latents):
    return latents.sex * 3 + np.digitize(latents.age, [40, 60])


def older_women(latents):
    return (latents.sex == 0) & (latents.age >= 60)


def marker_effect(latents, rows):
    """P(marker | glaucoma) - P(marker | none)."""
    marker, ill = latents.marker[rows], latents.glaucoma[rows]
    return marker[ill].mean() - marker[~ill].mean()


def test_representation():
    sizes = np.bincount(cells(drawn())) / MANY
    np.testing.assert_allclose(sizes, [0.09, 0.14, 0.12, 0.12, 0.28, 0.25], atol=0.01)
    even = drawn(representation=0.0)
    for codes, k in ((cells(even), 6), (even.race, 3), (even.ethnicity, 2), (even.language, 3)):
        np.testing.assert_allclose(np.bincount(codes, minlength=k) / MANY, 1 / k, atol=0.01)
    assert np.bincount(cells(drawn(representation=2.0))).min() / MANY < 0.06


def test_prevalence():
    on = drawn()
    shares = [on.glaucoma[cells(on) == c].mean() for c in range(6)]
    assert max(shares) - min(shares) > 0.2
    assert on.glaucoma[on.race == 1].mean() - on.glaucoma[on.race == 2].mean() > 0.1
    # The stated probability is the one that is drawn from.
    for low in np.arange(0.1, 0.7, 0.1):
        rows = (on.prevalence >= low) & (on.prevalence < low + 0.1)
        assert abs(on.glaucoma[rows].mean() - on.prevalence[rows].mean()) < 0.03
    off = drawn(prevalence=0.0)
    assert abs(off.glaucoma.mean() - 0.4) < 0.01
    for codes in (cells(off), off.race, off.ethnicity, off.language):
        table = np.array([[((codes == c) & (off.glaucoma == y)).sum() for c in np.unique(codes)] for y in (0, 1)])
        assert chi2_contingency(table).pvalue > 1e-3


def test_weak_signal():
    on, off, strong = drawn(), drawn(weak_signal=0.0), drawn(weak_signal=3.0)
    weak = older_women(on)
    assert abs(roc_auc_score(on.glaucoma[~weak], on.cup_to_disc[~weak]) - 0.93) < 0.01
    assert abs(roc_auc_score(on.glaucoma[weak], on.cup_to_disc[weak]) - 0.80) < 0.02
    assert abs(roc_auc_score(off.glaucoma[weak], off.cup_to_disc[weak]) - 0.93) < 0.015
    assert roc_auc_score(strong.glaucoma[weak], strong.cup_to_disc[weak]) < 0.75


def test_shortcut():
    on, off = drawn(), drawn(shortcut=0.0)
    men = on.sex == 1
    assert abs(marker_effect(on, men) - 0.6) < 0.02
    assert abs(marker_effect(on, ~men)) < 0.03
    assert abs(marker_effect(off, men)) < 0.02
    assert abs(off.marker.mean() - 0.5) < 0.01


def test_label_noise():
    off, on = drawn(), drawn(label_noise=0.1)
    np.testing.assert_array_equal(off.recorded, off.glaucoma)
    assert abs((on.recorded != on.glaucoma).mean() - 0.1) < 0.01
    np.testing.assert_array_equal(on.glaucoma, off.glaucoma)


@pytest.mark.parametrize(
    ("group", "field", "code"), [("female", "sex", 0), ("black", "race", 1), ("hispanic", "ethnicity", 1)]
)
def test_label_noise_in_one_group(group, field, code):
    everybody, one = drawn(label_noise=0.2), drawn(label_noise=0.2, noise_group=group)
    rows = getattr(one, field) == code
    wrong = one.recorded != one.glaucoma
    assert not wrong[~rows].any()
    # The same patients as where everybody's labels are noisy: the numbers drawn are the same.
    np.testing.assert_array_equal(wrong[rows], (everybody.recorded != everybody.glaucoma)[rows])
    for name in set(one._fields) - {"recorded", "noise"}:
        np.testing.assert_array_equal(getattr(one, name), getattr(everybody, name), err_msg=name)
    options = Options(patients=MANY, images_per_patient=1, label_noise=0.2, noise_group=group)
    best = bayes_scores(one, options)
    assert best[rows].min() >= 0.2 > best[~rows].min()
    for members in (rows, ~rows):
        for low in np.arange(0, 1, 0.1):
            near = members & (best >= low) & (best < low + 0.1)
            if near.sum() > 100:
                assert abs(one.recorded[near].mean() - best[near].mean()) < 4 * 0.5 / near.sum() ** 0.5


def test_an_unknown_group_of_the_noise():
    with pytest.raises(ConfigError, match="noise_group cannot be 'femail'"):
        Options(noise_group="femail")


@pytest.mark.parametrize("shortcut", [True, False])
def test_the_best_score_of_a_photograph_alone(shortcut):
    """Against the share of glaucoma among images that look alike, and a sum over all kinds of patient, one by one."""
    given = {"label_noise": 0.1, "noise_group": "female"}
    options = Options(patients=400_000, images_per_patient=1, **given)
    latents = draw_latents(options, 6)
    scores = bayes_scores(latents, options, shortcut=shortcut, groups=False)
    for marker in (True, False):
        for low in np.arange(-2, 2, 0.5):
            alike = (latents.severity > low) & (latents.severity < low + 0.05)
            if shortcut:
                alike &= latents.marker == marker
            assert abs(latents.recorded[alike].mean() - scores[alike].mean()) < 0.04
    race = {0: (0.14, 0.0), 1: (0.24, 0.5), 2: (0.62, -0.15)}
    cell = {(0, 0): 0.09, (0, 1): 0.14, (0, 2): 0.12, (1, 0): 0.12, (1, 1): 0.28, (1, 2): 0.25}
    for i in range(0, 2000, 97):
        yes = total = 0.0
        for (sex, band), size in cell.items():
            for share, more in race.values():
                log_odds = np.log(0.4 / 0.6) + (-0.15, 0.15)[sex] + (-0.8, 0.0, 0.5)[band] + more
                ill = 1 / (1 + np.exp(-log_odds))
                half = (2.09 / 1.75 if (sex, band) == (0, 2) else 2.09) / 2
                for state, prior in ((True, ill), (False, 1 - ill)):
                    seen = size * share * prior * norm.pdf(latents.severity[i], half if state else -half)
                    if shortcut:
                        with_marker = (0.8 if state else 0.2) if sex == 1 else 0.5
                        seen *= with_marker if latents.marker[i] else 1 - with_marker
                    wrong = 0.1 if sex == 0 else 0.0
                    yes += seen * (1 - wrong if state else wrong)
                    total += seen
        assert scores[i] == pytest.approx(yes / total, rel=1e-9)
    # To know the groups can only help.
    assert roc_auc_score(latents.recorded, scores) < roc_auc_score(
        latents.recorded, bayes_scores(latents, options, shortcut=shortcut)
    )


def test_a_knob_turns_only_what_it_governs():
    on, off = drawn(), drawn(shortcut=0.0)
    for name in set(on._fields) - {"marker", "marker_log_odds"}:
        np.testing.assert_array_equal(getattr(on, name), getattr(off, name), err_msg=name)
    off = drawn(weak_signal=0.0)
    for name in set(on._fields) - {"separation", "severity", "cup_to_disc"}:
        np.testing.assert_array_equal(getattr(on, name), getattr(off, name), err_msg=name)


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_bayes_scores_are_the_probabilities_by_bayes_rule(noise):
    """Against densities multiplied out one image at a time, and against the frequencies they predict."""
    options = Options(patients=MANY, label_noise=noise)
    latents = draw_latents(options, 5)
    scores, anatomy = bayes_scores(latents, options), bayes_scores(latents, options, shortcut=False)
    for i in range(0, 3000, 7):
        # From the model's definition, in the terms of the documentation.
        weak = latents.sex[i] == 0 and latents.age[i] >= 60
        half = (2.09 / 1.75 if weak else 2.09) / 2
        seen = {True: 0.8, False: 0.2} if latents.sex[i] == 1 else {True: 0.5, False: 0.5}
        joint, plain = {}, {}
        for ill, share in ((True, latents.prevalence[i]), (False, 1 - latents.prevalence[i])):
            plain[ill] = share * norm.pdf(latents.severity[i], half if ill else -half)
            joint[ill] = plain[ill] * (seen[ill] if latents.marker[i] else 1 - seen[ill])
        for found, parts in ((scores[i], joint), (anatomy[i], plain)):
            posterior = parts[True] / (parts[True] + parts[False])
            assert found == pytest.approx(posterior * (1 - noise) + (1 - posterior) * noise, rel=1e-9)
    for low in np.arange(0, 1, 0.1):
        rows = (scores >= low) & (scores < low + 0.1)
        if rows.sum() > 500:
            assert abs(latents.recorded[rows].mean() - scores[rows].mean()) < 0.03


def test_the_formula_of_the_auc_and_the_best_reachable_one():
    options = Options(patients=MANY, **OFF)
    plain = draw_latents(options, 1)
    # With no bias at all, the score's AUC is the closed form.
    assert roc_auc_score(plain.recorded, bayes_scores(plain, options)) == pytest.approx(
        anatomy_auc(SEPARATION), abs=0.005
    )
    options = Options(patients=MANY)
    latents = draw_latents(options, 1)
    best, anatomy = bayes_scores(latents, options), bayes_scores(latents, options, shortcut=False)
    men, weak = latents.sex == 1, older_women(latents)

    def auc(scores, rows):
        return roc_auc_score(latents.recorded[rows], scores[rows])

    assert 0.92 < auc(anatomy, men) < 0.95
    assert auc(best, men) > auc(anatomy, men) + 0.02
    assert 0.75 < auc(best, weak) < 0.85
    assert auc(best, ~men) == pytest.approx(auc(anatomy, ~men))
    # Nothing that a single image shows ranks better than the Bayes score.
    assert roc_auc_score(latents.recorded, best) > roc_auc_score(latents.recorded, latents.cup_to_disc) + 0.01


def test_the_cohort_follows_the_latents():
    options = Options(patients=300)
    release = generated.read(None, options, age_edges=(40.0, 60.0), seed=11)
    latents, table = draw_latents(options, 11), release.table
    assert table.num_rows == len(latents.patient)
    np.testing.assert_array_equal(label_matrix(table)[:, 0], latents.recorded)
    codes = group_codes(table, ["sex", "race", "ethnicity", "language"])
    np.testing.assert_array_equal(
        codes, np.stack([latents.sex, latents.race, latents.ethnicity, latents.language], axis=1)
    )
    np.testing.assert_array_equal(table.column("age").to_numpy(), latents.age)
    assert table.column("age_group").to_pylist() == [age_group(a, (40.0, 60.0)) for a in latents.age]
    assert (codes >= 0).all()
    assert set(table.column("split").to_pylist()) == {None}
    assert len(table.column("sample_id").unique()) == len(table.column("image").unique()) == table.num_rows
    # One or two eyes, and both of a patient agree in everything but the picture.
    counts = [("sample_id", "count"), ("age", "count_distinct"), ("language", "count_distinct")]
    eyes = table.group_by("patient_id").aggregate(counts)
    assert set(eyes.column("sample_id_count").to_pylist()) == {1, 2}
    assert set(eyes.column("age_count_distinct").to_pylist()) == {1}
    assert set(eyes.column("language_count_distinct").to_pylist()) == {1}
    pairs = {(p, int(y)) for p, y in zip(latents.patient, latents.recorded, strict=True)}
    assert len(pairs) == options.patients
    assert task_of(table).labels == ("glaucoma",)
    assert set(groups_of(table)) == {"sex", "age_group", "race", "ethnicity", "language"}
    single = generated.read(None, Options(patients=50, images_per_patient=1), age_edges=(40.0,), seed=0).table
    assert single.num_rows == 50


def test_notes_tell_what_real_ones_tell():
    options = Options(patients=1000)
    table = generated.read(None, options, age_edges=(40.0, 60.0), seed=2).table
    latents = draw_latents(options, 2)
    notes = np.array(table.column("note").to_pylist())
    diagnosed = np.char.find(notes, "Assessment: glaucoma") >= 0
    cleared = np.char.find(notes, "no evidence of glaucoma") >= 0
    assert 0.5 < (diagnosed | cleared).mean() < 0.7
    assert latents.recorded[diagnosed].all()
    assert not latents.recorded[cleared].any()
    woman, man = np.char.find(notes, "-year-old woman") >= 0, np.char.find(notes, "-year-old man") >= 0
    assert 0.7 < (woman | man).mean() < 0.9
    assert (latents.sex[woman] == 0).all()
    assert (latents.sex[man] == 1).all()
    told = np.array([float(note.split("cup-to-disc ratio of ")[1][:3]) for note in notes])
    assert abs(told - latents.cup_to_disc).max() < 0.2
    assert min(note.count(".") for note in notes) >= 4


def test_the_same_seed_gives_the_same_bytes_in_any_order():
    options = Options(patients=100)
    first, second = (generated.read(None, options, age_edges=(40.0, 60.0), seed=4) for _ in range(2))
    other = generated.read(Path("ignored"), options, age_edges=(40.0, 60.0), seed=5)
    assert first.table.equals(second.table)
    assert not first.table.equals(other.table)
    keys = first.table.column("image").to_pylist()
    forward = {key: first.load(key) for key in keys}
    for key in reversed(keys):
        np.testing.assert_array_equal(second.load(key), forward[key])
    assert not np.array_equal(other.load(other.table.column("image")[0].as_py()), forward[keys[0]])


def test_the_drawing_shows_the_geometry_it_is_given():
    """Measured back from the pixels by brightness, independently of how they were drawn."""
    n, size = 200, 96
    rng = np.random.default_rng(0)
    ratio, radius = np.linspace(0.2, 0.85, n), rng.uniform(0.18, 0.27, n)
    centre = rng.uniform(0.35, 0.65, (n, 2))
    given = {"disc_radius": radius, "disc_centre": centre, "brightness": np.ones(n), "warmth": np.zeros(n)}
    pictures = draw_fundus(rng, cup_to_disc=ratio, marker=np.arange(n) % 2 == 0, size=size, **given)
    assert pictures.shape == (n, size, size, 3)
    assert pictures.dtype == np.uint8
    # The retina is red, disc and cup are not: the green share tells them apart.
    red, green = pictures[..., 0].astype(float), pictures[..., 1].astype(float)
    bright = (green > 0.56 * red) & (red > 90)
    bright[:, 80:, :16] = False  # the marker's corner
    area = bright.sum((1, 2)) / size**2
    assert np.corrcoef(area, radius**2)[0, 1] > 0.9
    y, x = (np.indices((size, size)) + 0.5) / size
    found = np.stack([(bright * x).sum((1, 2)), (bright * y).sum((1, 2))], 1) / bright.sum((1, 2))[:, None]
    assert abs(found - centre).max() < 0.04
    cup = ((green > 0.78 * red) & bright).sum((1, 2)) / size**2
    assert np.corrcoef(cup / area, ratio**2)[0, 1] > 0.9
    corner = pictures[:, 86:91, 5:10].mean((1, 2, 3))
    assert corner[::2].min() > corner[1::2].max() + 50


def test_what_is_given_to_the_drawing_does_not_change_the_rest():
    ratio = np.full(4, 0.5)
    free = draw_fundus(np.random.default_rng(1), cup_to_disc=ratio)
    tagged = draw_fundus(np.random.default_rng(1), cup_to_disc=ratio, marker=np.ones(4))
    differs = (free != tagged).any((0, 3))
    assert differs[55:62, 2:9].any()
    differs[54:63, 1:10] = False
    assert not differs.any()


def test_a_simple_classifier_learns_from_the_pictures_but_worse_for_older_women():
    options = Options(patients=1100, weak_signal=1.5)
    release, latents = generated.read(None, options, age_edges=(40.0, 60.0), seed=0), draw_latents(options, 0)
    pictures = np.stack([release.load(key) for key in release.table.column("image").to_pylist()])
    small = pictures.reshape(len(pictures), 32, 2, 32, 2, 3).mean((2, 4)).reshape(len(pictures), -1)
    train, label = latents.patient < 600, latents.recorded
    model = make_pipeline(StandardScaler(), PCA(50, random_state=0), StandardScaler(), LogisticRegression(C=0.1))
    scores = model.fit(small[train], label[train]).decision_function(small)
    test, weak = ~train, older_women(latents)
    assert roc_auc_score(label[test], scores[test]) > 0.85
    assert (
        roc_auc_score(label[test & weak], scores[test & weak])
        < roc_auc_score(label[test & ~weak], scores[test & ~weak]) - 0.08
    )
    # It cannot beat the ground truth.
    assert roc_auc_score(label[test], scores[test]) < roc_auc_score(label[test], bayes_scores(latents, options)[test])


@pytest.mark.parametrize(
    "wrong",
    [{"shortcut": -0.1}, {"label_noise": 0.6}, {"patients": 0}, {"images_per_patient": 3}, {"weak_signal": "strong"}],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"Options.{next(iter(wrong))}"):
        Options(**wrong)


def test_every_bias_has_a_test_here():
    strengths = {f.name for f in dataclasses.fields(Options) if f.metadata["low"] == 0}
    assert strengths == {*OFF, "label_noise"}
    assert {f"test_{name}" for name in strengths} <= set(globals())
