"""Who reads the data card and the strata together, and solves for what both hide.

An unknown of the system is how many images there are of one combination of groups (an unknown one among them), of the
split that the release gave, and of the split that stratify gave.
"""

from itertools import combinations, product

import numpy as np

SPLITS = ("train", "validation", "test")
KEYS = ("train_before", "validation", "test")
NOT_SPLIT = "not split yet"


class Attacker:
    """Knows what is published, as equations over the unknowns.

    Args:
        card: the content of `card.json`; None where there is no card.
        strata: the content of `strata.json`.
    """

    def __init__(self, card, strata):
        self.strata, counts = strata, card["counts"] if card else []
        of_card = {}
        for entry in counts:
            for attribute, group in entry["groups"].items():
                of_card.setdefault(attribute, {})[group] = None
        axes = {name: [*dict.fromkeys(cell[name] for cell in strata["cells"])] for name in strata["attributes"]}
        for name in {*axes, *of_card}:
            known = axes.get(name) or [group for group in of_card[name] if group != "unknown"]
            # The card has no line for unknown groups where there are none.
            axes[name] = known + ["unknown"] * (name not in of_card or "unknown" in of_card[name])
        official = {entry["split"] for entry in counts} - {"all"} or {NOT_SPLIT}
        totals = dict(zip(SPLITS, (strata["total"][key] for key in KEYS), strict=True))
        same = {split for split in SPLITS if any(self.is_total(entry, split, totals[split]) for entry in counts)}
        self.names = sorted(axes)
        self.unknowns = [
            (dict(zip(self.names, groups, strict=True)), before, after)
            for *groups, before, after in product(*(axes[name] for name in self.names), sorted(official), SPLITS)
            # An official split is kept; only training rows may become another, and none of one that has not grown.
            if before == after or (before in (NOT_SPLIT, "train") and after not in same)
        ]
        self.public, self.all = [], []
        for entry in counts:
            if isinstance(entry["images"], int):
                self.know(self.row(**self.of_card(entry)), entry["images"], public=True)
        for split, told in zip(SPLITS, KEYS, strict=True):
            self.know(self.row(after=split), strata["total"][told], public=True)
            for cell in strata["cells"]:
                groups = {name: cell[name] for name in strata["attributes"]}
                self.know(self.row(groups, after=split), cell[told])
            self.know(self.row(lacking=strata["attributes"], after=split), strata["unknown"][told])
        self.of_all, self.of_public = solve(self.all), solve(self.public)

    @staticmethod
    def is_total(entry, split, images):
        return not entry["groups"] and "lacking" not in entry and (entry["split"], entry["images"]) == (split, images)

    @staticmethod
    def of_card(entry):
        before = None if entry["split"] == "all" else entry["split"]
        return {"groups": entry["groups"], "lacking": entry.get("lacking", ()), "before": before}

    def row(self, groups=(), lacking=None, known=(), before=None, after=None):
        """Which unknowns add up to the images of these groups in these splits."""
        groups = dict(groups)
        return np.array(
            [
                float(
                    all(of[name] == group for name, group in groups.items())
                    and (not lacking or any(of[name] == "unknown" for name in lacking))
                    and (lacking != [] or groups != {})
                    and all(of[name] != "unknown" for name in known)
                    and before in (None, was)
                    and after in (None, now)
                )
                for of, was, now in self.unknowns
            ]
        )

    def know(self, row, value, *, public=False):
        if value is not None:
            self.all.append((row, value))
            if public or value == 0:  # where nobody is, nobody is protected
                self.public.append((row, value))

    def can_tell(self, row, known):
        """Whether the sum of these unknowns follows from what `solve` made of some equations."""
        there, directions = known
        wanted = row[there]
        if not wanted.any():
            return False  # there is nobody, and this may be known
        rest = wanted - directions.T @ (directions @ wanted)
        return bool(np.linalg.norm(rest) < 1e-7 * np.linalg.norm(wanted))

    def found(self, row):
        """Whether it follows, and not from what everybody knows: the card, and how large the splits are."""
        return self.can_tell(row, self.of_all) and not self.can_tell(row, self.of_public)


def solve(equations):
    """Which unknowns may not be 0, for nobody is a negative number of images; and what is known of them, as a basis."""
    there = np.ones(len(equations[0][0]), dtype=bool)
    for row, value in equations:
        there &= (row == 0) | (value > 0)
    _, sizes, directions = np.linalg.svd(np.array([row[there] for row, _ in equations]), full_matrices=False)
    return there, directions[sizes > 1e-9 * sizes.max(initial=0)]


def small_counts(attacker, card, before, after, min_cell):
    """Each count of few patients that a document hides: its name and the attacker's row.

    Args:
        before, after: the cohort as ingest and as stratify (before balancing) have it, pandas, null where unknown.
    """
    attributes = attacker.strata["attributes"]
    lacks = after[attributes].isna().any(axis=1) if attributes else after["split"].isna()
    for splits in subsets(SPLITS):
        there = after[after["split"].isin(splits)]
        if 0 < there.loc[lacks[there.index], "patient_id"].nunique() < min_cell:
            yield f"strata unknown {splits}", sum(attacker.row(lacking=attributes, after=split) for split in splits)
        for names in subsets(attributes):  # cells, and all cells of a group together
            known = there[~lacks[there.index]]
            for values, rows in known.groupby(list(names), observed=True):
                if rows["patient_id"].nunique() < min_cell:
                    groups = dict(zip(names, values, strict=True))
                    row = sum(attacker.row(groups, known=attributes, after=split) for split in splits)
                    yield f"strata {groups} {splits}", row
    official = before.assign(split=before["split"].fillna(NOT_SPLIT))
    for entry in card["counts"] if card else ():
        if entry["groups"] and "unknown" not in entry["groups"].values():
            there = official if entry["split"] == "all" else official[official["split"] == entry["split"]]
            if 0 < patients(there, entry["groups"]) < min_cell:
                yield f"card {entry['groups']} {entry['split']}", attacker.row(**attacker.of_card(entry))


def subsets(names):
    return [chosen for length in range(1, len(names) + 1) for chosen in combinations(names, length)]


def patients(frame, groups):
    for name, group in groups.items():
        frame = frame[frame[name] == group]
    return frame["patient_id"].nunique()


def leaks(card, strata, before, after, min_cell=10):
    """What the attacker finds out, by name."""
    attacker = Attacker(card, strata)
    return [name for name, row in small_counts(attacker, card, before, after, min_cell) if attacker.found(row)]
