"""Writes what the docs take from the declarations of fields and parts: docs/config.md, and the
tables at the end of docs/recipes/source.md and evaluation.md.

    python docs/generate.py
    python docs/generate.py --check     exits 1 and names the files that would change
"""

import argparse
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from siglax import evals  # noqa: E402
from siglax.config import document  # noqa: E402
from siglax.data import sources  # noqa: E402

# The last words before the tables of a recipe.
MARK = "`python docs/generate.py` writes these tables.\n\n"


def texts() -> dict[pathlib.Path, str]:
  """{file: what it should hold}."""
  found = {DOCS / "config.md": document.markdown() + "\n"}
  for name, tables in (("source", sources.markdown()), ("evaluation", evals.markdown())):
    file = DOCS / "recipes" / f"{name}.md"
    head, mark, _ = file.read_text().partition(MARK)
    if not mark:
      sys.exit(f"{file} lacks the line {MARK.strip()}")
    found[file] = head + mark + tables + "\n"
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--check", action="store_true", help="write nothing; say what is stale")
  check = parser.parse_args().check
  stale = {file: text for file, text in texts().items() if file.read_text() != text}
  for file, text in stale.items():
    if not check:
      file.write_text(text)
    print(f"{file}: {'stale; run python docs/generate.py' if check else 'written'}")
  sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
  main()
