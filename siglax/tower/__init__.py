"""A trained model in use: pictures and texts to embeddings.

`siglax.load` makes a Tower of a run folder or of a checkpoint of another library. `Embedder` runs
the towers on all devices of a mesh; evaluations use it too.
"""

from siglax.tower.embedder import Embedder
from siglax.tower.tower import Tower
from siglax.tower.tower import load
