"""graph.md: the page a person reads. Findings first, then the tables they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from editforge.artifacts.report import Estimate
from editforge.graph.graph import Graph

PAGE = "graph.md"
_EDGES = 25


def page(graph: Graph) -> str:
    """The whole page, Markdown."""
    parts = [
        f"# Concept graph: {len(graph.nodes)} concepts, {graph.recipe['method']}",
        _how(graph),
        "## Findings",
        "\n".join(f"- {line}" for line in _findings(graph)),
        "![Who hurts whom](graph.png)\n\n![Damage, erased by measured](heatmap.png)\n\n"
        "![Damage against text distance; incoming damage against base presence](locality.png)",
        "## Concepts",
        _nodes(graph),
        f"## The strongest damages (of {graph.findings.clear} that are clear of zero)",
        _edges(graph),
        "## Damage by text distance",
        _bins(graph),
        "## Pairs that hurt one way",
        _sided(graph),
        "## What this does not say",
        _limits(graph),
    ]
    return "\n\n".join(parts) + "\n"


def summary(graph: Graph) -> str:
    """The findings as plain lines."""
    return "\n".join(line.replace("**", "").replace("`", "") for line in _findings(graph))


def _how(graph: Graph) -> str:
    judges, recipe = ", ".join(judge["name"] for judge in graph.judges), graph.recipe
    return (
        f"Each concept is erased alone from {graph.base_model} (recipe `{recipe['method']}`, preset "
        f"`{recipe['preset']}`, strength {recipe['strength']:g}); then every concept is drawn "
        f"{graph.images} times, on the noise the base had. Damage is the share of pictures that show "
        f"the concept by the base, less the share by the edited model; a picture shows it if all "
        f"judges ({judges}) say so. In brackets 95 % intervals."
    )


def _findings(graph: Graph) -> Iterable[str]:
    found = graph.findings
    local, sides, weak, proxy = found.locality, found.asymmetry, found.weak, found.proxy
    yield (
        f"**Damage**: {_share(found.damage)} on average over {found.pairs} pairs; in "
        f"{found.clear} of them it is clearly above zero."
    )
    yield (
        f"**Locality**: rank correlation of text similarity with damage {_number(local.correlation)}"
        f"{_reading(local.correlation, 'damage is local', 'damage falls on what is far')}; over "
        f"well-drawn concepts {_number(local.reliable)}. Within a group "
        f"{_share(local.same_group)}, across groups {_share(local.other_group)}, difference "
        f"{_share(local.gap)}."
    )
    if sides.mean is None or sides.by_chance is None or sides.by_chance_most is None:
        yield "**Asymmetry**: undefined, no pair was measured both ways."
    else:
        real = "more than noise makes" if (sides.p or 0) < 0.05 else "no more than noise makes"
        yield (
            f"**Asymmetry**: the two directions of a pair differ by {sides.mean:.1%} on average; by "
            f"chance {sides.by_chance:.1%}, at most {sides.by_chance_most:.1%} (p = {sides.p:.3f}): "
            f"{real}. {sides.clear} of {sides.pairs} pairs are clearly one-sided."
        )
    names = ", ".join(weak.concepts) or "none"
    yield (
        f"**Drop whatever is erased**: {names}. Rank correlation of base presence with incoming damage "
        f"{_number(weak.correlation)}"
        f"{_reading(weak.correlation, 'the well drawn lose more', 'the weakly drawn lose more')}."
    )
    yield (
        f"**Text alone**: |leak| of `target: adaptive` and measured damage correlate by rank "
        f"{_number(proxy.correlation)}"
        f"{_reading(proxy.correlation, 'it foretells something', 'it misleads')}; over well-drawn "
        f"concepts {_number(proxy.reliable)}; with no word preserved in it {_number(proxy.unheld)}."
    )
    poor = [node.name for node in graph.nodes if node.unreliable]
    if poor:
        yield (
            f"**Unreliable**: the base shows {', '.join(poor)} in under 80 % of its pictures; what they "
            "lose says little."
        )
    left = [n.name for n in graph.nodes if (n.erased.value or 0) > 0.1]
    if left:
        yield f"**Not erased**: {', '.join(left)} still drawn in over 10 % after their own erasure."


def _nodes(graph: Graph) -> str:
    rows = [
        (
            f"{node.name}{' *' if node.unreliable else ''}",
            node.group or "",
            _share(node.base),
            "nothing" if node.becomes == "" else node.becomes or "",
            f"{_share(node.erased)} ({node.drawn.value:.0%})",
            _share(node.incoming),
            _share(node.outgoing),
        )
        for node in graph.nodes
    ]
    head = (
        "concept",
        "group",
        "base shows it",
        "becomes",
        "drawn when erased (base)",
        "loses",
        "costs the others",
    )
    return (
        _table(head, rows)
        + "\n\n\\* unreliable. *Drawn*: either judge sees it; elsewhere all must."
    )


def _edges(graph: Graph) -> str:
    clear = sorted(
        (edge for edge in graph.edges if edge.clear),
        key=lambda edge: (-edge.damage, edge.erased, edge.measured),
    )
    if not clear:
        return "None: no damage is clear of zero."
    rows = [
        (
            edge.erased,
            edge.measured,
            f"{edge.damage:.0%} [{edge.lo:.0%}, {edge.hi:.0%}]",
            f"{edge.similarity:.2f}",
            f"{edge.leak:.3f}",
            f"{edge.unheld:.3f}",
        )
        for edge in clear[:_EDGES]
    ]
    return _table(("erased", "what it hurts", "damage", "text similarity", "leak", "unheld"), rows)


def _bins(graph: Graph) -> str:
    rows = [
        (f"{row.nearest:.2f} to {row.farthest:.2f}", str(row.pairs), _share(row.damage))
        for row in graph.findings.locality.bins
    ]
    return _table(("text distance (1 - similarity)", "pairs", "damage"), rows)


def _sided(graph: Graph) -> str:
    rows = [
        (one.hurts, one.hurt, f"{one.difference:.0%} [{one.lo:.0%}, {one.hi:.0%}]")
        for one in graph.findings.asymmetry.strongest
    ]
    if not rows:
        return "None is clear of zero."
    return _table(("erasing", "hurts", "more than the reverse, by"), rows)


def _limits(graph: Graph) -> str:
    lines = [
        "One recipe, one model, one set of held-out prompts: another recipe has another graph.",
        "Intervals of pairs are of the pictures; those of findings resample the erased concepts and "
        "speak of other erasures of these concepts, not of other concepts.",
        "A negative damage is a gain: pictures that show it by the edited model alone.",
        "Pairs are many: of those with no damage at all, about one in forty is clear of zero by chance.",
    ]
    if len(graph.judges) == 1:
        lines.append("One judge: no second opinion on what is shown.")
    if graph.one_thing:
        twins = "; ".join(" and ".join(pair) for pair in graph.one_thing)
        lines.append(f"Left out, one thing to the judge: {twins}.")
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.lo is None or estimate.hi is None:
        return f"undefined ({estimate.reason})"
    digits = 0 if estimate.unit == "images" else 1
    return f"{estimate.value:.{digits}%} [{estimate.lo:.{digits}%}, {estimate.hi:.{digits}%}]"


def _number(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"undefined ({estimate.reason})"
    return f"{estimate.value:.2f} [{estimate.lo:.2f}, {estimate.hi:.2f}]"


def _reading(estimate: Estimate, above: str, below: str) -> str:
    """What a correlation says in words; nothing where it is undefined."""
    if estimate.lo is None or estimate.hi is None:
        return ""
    return f" ({above if estimate.lo > 0 else below if estimate.hi < 0 else 'not told from none'})"
