"""The built-in dataset: pictures of one to three objects and captions that say what stands where.

Every example is a pure function of (seed, split, index), so the dataset needs no download, has any
size and can be read in any order, from any thread, on any machine:

    >>> Shapes("train", examples=1000)[0]["captions"]
    ['a little purple star is to the left of a small amber cross', 'a little amber cross right of a
    tiny purple star']

An object has a shape, a colour and a size, and stands somewhere: a lone object in one of nine
places, two and three objects in relation to each other. A caption tells all of it in one of many
wordings, so a word alone says little about the picture: its partners are as likely in other
arrangements.
Eight of the 48 colour-shape pairs (UNSEEN) never occur in training, which makes composition
testable.

`python -m siglax.data.shapes OUT.model` remakes the tokenizer that ships with it.
"""

from siglax.data.shapes.dataset import Shapes
from siglax.data.shapes.dataset import make_tokenizer
from siglax.data.shapes.grammar import CLASSNAMES
from siglax.data.shapes.grammar import SEEN
from siglax.data.shapes.grammar import UNSEEN
