"""The concept graph: what erasing each of several concepts does to each of the others.

graph = editforge.graph.measure(["violin", "umbrella", "bicycle"], Path("runs/graph"))
"""

from editforge.graph.build import measure as measure
from editforge.graph.graph import Graph as Graph
