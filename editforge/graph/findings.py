"""What can be found in a graph, as data: locality, asymmetry, weak concepts, the text-only proxy.

Every number has an interval, and what cannot be told says why. `graph/find.py` computes them.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from editforge.artifacts.report import Estimate, Number


class Frozen(BaseModel):
    """Plain data, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(Frozen):
    """Pairs of about one text distance (1 - similarity), and what is lost there on average."""

    nearest: Number
    farthest: Number
    pairs: int
    damage: Estimate


class Locality(Frozen):
    """Is damage where text is near? `correlation` is of similarity with damage: positive is local.

    `reliable` is the same over measured concepts that the base draws in 80 % of its pictures.
    `same_group` and `other_group` are mean damages, `gap` their difference; undefined without groups.
    """

    correlation: Estimate
    reliable: Estimate
    bins: tuple[Bin, ...]
    same_group: Estimate
    other_group: Estimate
    gap: Estimate


class OneSided(Frozen):
    """A pair whose two damages differ: erasing `hurts` costs `hurt` more than the reverse."""

    hurts: str
    hurt: str
    difference: Number
    lo: Number
    hi: Number


class Asymmetry(Frozen):
    """|Delta(e, v) - Delta(v, e)| against what noise alone gives.

    `by_chance` and `by_chance_most` are mean and 97.5 % quantile of the mean over all pairs if the
    pictures of both directions are shuffled within each pair; `p` is the share of shuffles with as much.
    `clear` pairs have a 95 % interval without 0; by chance up to one pair in twenty has.
    """

    pairs: int
    mean: Number | None
    by_chance: Number | None
    by_chance_most: Number | None
    p: Number | None
    clear: int
    strongest: tuple[OneSided, ...]


class Weak(Frozen):
    """Who drops whatever is erased: mean loss clearly above 0, and 10 % lost in half of the erasures.

    `correlation` is of base presence with mean incoming damage over concepts: negative if the weak drop.
    """

    concepts: tuple[str, ...]
    correlation: Estimate


class Proxy(Frozen):
    """Rank correlation of |leak|, which text alone gives, with measured damage; see `graph/text.py`.

    `unheld` is of the leak that knows no preserved words: the edit as it would be without them.
    """

    correlation: Estimate
    reliable: Estimate
    unheld: Estimate


class Findings(Frozen):
    """All of them; `damage` is the mean over pairs, `clear` counts pairs whose interval is above 0."""

    pairs: int
    damage: Estimate
    clear: int
    locality: Locality
    asymmetry: Asymmetry
    weak: Weak
    proxy: Proxy
